#!/usr/bin/env bash
# Trains three steps over two "hosts" on one machine, through DeepSpeed's own launcher: hostfile, pdsh, ssh, two nodes.
#
#     sudo env PATH="$PATH" tests/multinode/two_hosts.sh [MODEL]
#
# A host is a network namespace with an sshd of its own; a veth pair joins the two and is called eth0 in both. `python`
# and `deepspeed` are the first on PATH, on both hosts. MODEL lends its config and tokenizer only, the weights are new.
# Nothing is written outside temporary folders, and all of it goes away on exit, whichever way the script ends.
# Exit status: 0 trained and checked, 77 skipped because this machine lacks something, anything else failed.
set -euo pipefail

model=${1:-builtin:base}
num_steps=3
addresses=(10.77.0.1 10.77.0.2)
namespaces=("lift-ds-$$-1" "lift-ds-$$-2")
master_port=29611
limit_seconds=600
made_run_sshd=no
PATH=$PATH:/usr/sbin:/sbin # where Debian keeps sshd and ip; not on every PATH

skip() {
    echo "two hosts: skipped: $*"
    exit 77
}

check_machine() {
    local -A package_of=([ip]=iproute2 [sshd]=openssh-server [ssh]=openssh-client [ssh-keygen]=openssh-client [pdsh]=pdsh)
    local tool missing=() packages=()
    for tool in "${!package_of[@]}"; do
        if ! command -v "$tool" >/dev/null; then
            missing+=("$tool")
            packages+=("${package_of[$tool]}")
        fi
    done
    if ((${#missing[@]})); then
        skip "no ${missing[*]} here; apt-get install $(printf '%s\n' "${packages[@]}" | sort -u | paste -sd ' ')"
    fi
    ((EUID == 0)) || skip "network namespaces need root; sudo env PATH=\"\$PATH\" tests/multinode/two_hosts.sh"
    for tool in python deepspeed; do
        command -v "$tool" >/dev/null || {
            echo "two hosts: no $tool on PATH; activate the environment that the project is installed in" >&2
            exit 1
        }
    done
}

# Every process of a run lives in one of the two namespaces, so its namespace is enough to find and end it.
clean_up() {
    local namespace
    for namespace in "${namespaces[@]}"; do
        ip netns pids "$namespace" | xargs --no-run-if-empty kill -KILL || true
        ip netns delete "$namespace" || true
    done 2>/dev/null # a namespace may not be there yet, and bash would report each process that it sees killed
    [[ $made_run_sshd == no ]] || rmdir /run/sshd
    rm -rf "$work"
}

make_hosts() {
    local host refusal
    for host in 0 1; do
        refusal=$(ip netns add "${namespaces[host]}" 2>&1) ||
            skip "this root may not make network namespaces; CAP_SYS_ADMIN is needed ($refusal)"
    done
    # No bridge: a pair needs nothing of the machine's own network, whose firewall may drop what is bridged.
    ip link add eth0 netns "${namespaces[0]}" type veth peer name eth0 netns "${namespaces[1]}"
    for host in 0 1; do
        ip -n "${namespaces[host]}" address add "${addresses[host]}/24" dev eth0
        ip -n "${namespaces[host]}" link set eth0 up
        ip -n "${namespaces[host]}" link set lo up
    done
}

start_sshds() {
    local host use_pam=no
    # Without PAM sshd turns a locked account away, key or not; with PAM it asks for more than a container may have.
    [[ $(getent shadow root | cut -d: -f2) != '!'* ]] || use_pam=yes
    if [[ ! -d /run/sshd ]]; then # compiled into sshd, made by the init system where there is one
        mkdir -m 0755 /run/sshd
        made_run_sshd=yes
    fi
    ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
    ssh-keygen -q -t ed25519 -N '' -f "$work/user_key"
    for host in 0 1; do
        cat >"$work/sshd_config_$host" <<CONFIG
ListenAddress ${addresses[host]}:22
HostKey $work/host_key
AuthorizedKeysFile $work/user_key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM $use_pam
# The key lies below /tmp, which everybody may write to.
StrictModes no
PidFile none
CONFIG
        # sshd insists on an absolute path, and goes to the background once it listens.
        ip netns exec "${namespaces[host]}" "$(command -v sshd)" -f "$work/sshd_config_$host" -E "$work/sshd_$host.log"
    done
    echo "10.77.0.* $(cut -d ' ' -f 1,2 "$work/host_key.pub")" >"$work/known_hosts"
    cat >"$work/ssh_config" <<CONFIG
Host *
    IdentityFile $work/user_key
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile $work/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
CONFIG
}

write_launcher_files() {
    printf '%s slots=1\n' "${addresses[@]}" >"$work/hostfile"
    # DeepSpeed exports PYTHON* and a few more to the nodes; the rest goes here. PATH, because ninja, which builds its
    # CPU operators, sits beside python. One name=value a line: the parser knows no comments.
    cat >"$work/.deepspeed_env" <<ENV
GLOO_SOCKET_IFNAME=eth0
DS_ACCELERATOR=cpu
OMP_NUM_THREADS=1
PATH=$PATH
ENV
}

# DeepSpeed looks for .deepspeed_env in the home and the working directory; DS_ENV_FILE takes an absolute path, which
# spares both. The working directory is the repository: the launcher enters it on every node and puts it on PYTHONPATH.
train() {
    local overrides=(
        model.from_scratch=true "optim.steps=$num_steps" eval.solve_items=0 eval.rows=0 checkpoint.save_every=0
    )
    # In the background and waited for: a signal to this script is then handled at once, not after the training.
    DS_ACCELERATOR=cpu DS_ENV_FILE=$work/.deepspeed_env PDSH_SSH_ARGS_APPEND="-F $work/ssh_config" \
        ip netns exec "${namespaces[0]}" timeout --kill-after=10 "$limit_seconds" \
        deepspeed --hostfile "$work/hostfile" --no_ssh_check --master_addr "${addresses[0]}" --master_port $master_port \
        launchers/train.py --deepspeed ds_configs/zero3.json --model "$model" --output "$work/run" "${overrides[@]}" &
    wait $! || {
        local status=$?
        echo "two hosts: the run failed with status $status (124: still running after $limit_seconds s); sshd said:" >&2
        cat "$work"/sshd_*.log >&2
        exit 1
    }
}

check_run() {
    python - "$work/run" $num_steps <<'PYTHON'
import json
import math
import sys
from pathlib import Path

run, num_steps = Path(sys.argv[1]), int(sys.argv[2])
records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
losses = [record["loss"] for record in records if record["kind"] == "step"]
newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
manifest = json.loads((newest / "manifest.json").read_text())
world_size = json.loads((run / "run.json").read_text())["world_size"]
problems = []
if world_size != 2:
    problems.append(f"run.json: world_size {world_size}, 2 expected")
if len(losses) != num_steps or not all(math.isfinite(loss) for loss in losses):
    problems.append(f"metrics.jsonl: losses {losses}, {num_steps} finite ones expected")
if (manifest["world_size"], manifest["step"]) != (2, num_steps):
    problems.append(f"{newest.name}: written by {manifest['world_size']} ranks at step {manifest['step']}")
if problems:
    sys.exit("two hosts: " + "; ".join(problems))
PYTHON
    # Two ranks on one host would pass everything above; their gradients would not cross the wire.
    local received
    received=$(ip netns exec "${namespaces[1]}" cat /sys/class/net/eth0/statistics/rx_bytes)
    if ((received < 1 << 20)); then
        echo "two hosts: the second host received $received bytes; the ranks did not train together" >&2
        exit 1
    fi
    echo "second host received $((received >> 20)) MiB"
}

check_machine
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=$(mktemp --directory)
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
make_hosts
start_sshds
write_launcher_files
train
check_run
echo "two hosts: $num_steps steps, world 2, $SECONDS s"
