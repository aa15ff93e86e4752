"""Bytes that know no model: safetensors, torch's files, flat groups, manifests, staging."""
