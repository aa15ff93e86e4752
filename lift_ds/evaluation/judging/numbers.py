r"""Numbers as people and LaTeX write them, read exactly: fractions, never floating point.

Read are integers, decimals, thousands separators (`1,234`, `1{,}234`, `1\,234`), fractions, mixed numbers, powers of
ten, with a sign, a name before `=`, a currency before or a unit behind, and a percent sign. Whatever has a variable, a
root, a second number or a comma elsewhere is no number here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

LONGEST = 200
LARGEST_EXPONENT = 100
PERCENT = re.compile(r"\s*(?:\\?%|\bper\s?cent\b)$", re.IGNORECASE)
CURRENCY = re.compile(r"^([-+]?)\s*(?:\\?\$|USD|US\\?\$|€|£|\\pounds|\\euro)\s*")
NAME = re.compile(r"^(?:([A-Za-z])|[A-Za-z][a-z ]{2,30}|\\text\{[^{}]*\})\s*=\s*")
DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)\s*$")
TEXT_UNIT = re.compile(r"\s*\\(?:text|mathrm|mbox|textrm|rm)\s*\{([^{}\d]*)\}\s*(?:\^\s*\{?[23]\}?)?$")
WORD_UNIT = re.compile(
    r"(?<=[\d}])(?:\s+|\\ )([A-Za-z]{2,}(?:[ /-]+[A-Za-z]{2,})*|[mgshLlJNW])\.?(?:\s*\^\s*\{?[23]\}?)?$"
)
SPACING = re.compile(r"\\[,;:!]|\\ |~|\\left|\\right|\\mathbf|\\displaystyle")
LATEX_COMMA = re.compile(r"\{,\}|,\\!\s*")
THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d,])")
SPACED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:\\,\d{3})+(?!\d)")
DECIMAL = r"\d+\.?\d*|\.\d+"
SIGN = r"(?P<sign>[-+]?)\s*"
BRACED_OR_DIGIT = r"(?:\{{\s*(?P<{0}>-?(?:{1}))\s*\}}|(?P<{0}_digit>\d))"
FRACTION = r"\s*".join([r"\\[dtc]?frac", *(BRACED_OR_DIGIT.format(part, DECIMAL) for part in ("above", "below"))])
PLAIN = re.compile(rf"{SIGN}(?P<value>{DECIMAL})")
LATEX_FRACTION = re.compile(rf"{SIGN}(?P<whole>\d+)?\s*{FRACTION}")
SLASHED = re.compile(rf"{SIGN}(?:(?P<whole>\d+)\s+)?(?P<above>{DECIMAL})\s*/\s*(?P<below>{DECIMAL})")
SCIENTIFIC = re.compile(
    rf"{SIGN}(?:(?P<value>{DECIMAL})\s*(?:\\times|\\cdot|\*|×)\s*)?10\s*\^\s*(?:\{{\s*(?P<braced>-?\d+)\s*\}}|(?P<digit>\d))"  # noqa: RUF001
)
IN_A_BASE = re.compile(r"([0-9][0-9A-Za-z]*)\s*_\s*(?:\{\s*(\d{1,2})\s*\}|(\d{1,2}))")
BASE_WORD = re.compile(r"\bbase\b", re.IGNORECASE)
PERCENT_WORDS = re.compile(r"\\?%|\bper\s?cent(?:age)?\b", re.IGNORECASE)
UNITS = {
    name: names.split()[0]
    for names in (
        "$ dollar dollars",
        "cent cents",
        "mm millimeter millimeters millimetres",
        "cm centimeter centimeters centimetres",
        "m meter meters metres",
        "km kilometer kilometers kilometres",
        "inch inches in",
        "foot feet ft",
        "yard yards yd",
        "mile miles mi",
        "second seconds sec s",
        "minute minutes min",
        "hour hours hr h",
        "day days",
        "week weeks",
        "month months",
        "year years",
        "gram grams g",
        "kg kilogram kilograms",
        "ounce ounces oz",
        "pound pounds lb lbs",
        "ml milliliter milliliters",
        "liter liters litres l",
        "gallon gallons",
    )
    for name in names.split()
}
"""By name in lower case, units that answers are confused in: the first name of each line."""


@dataclass(frozen=True)
class Quantity:
    """A number as it was written, with its unit, if it is one of `UNITS`, and the letter before `=`, if any."""

    value: Fraction
    is_percent: bool = False
    unit: str = ""
    name: str = ""


def read_quantity(text: str) -> Quantity | None:
    """The only number of `text`, exactly; `None` where it is anything else."""
    text = text.strip()
    if len(text) > LONGEST:
        return None
    text = stripped_of_formula_marks(text).replace("−", "-").rstrip(".").strip()  # noqa: RUF001
    named = NAME.match(text)
    text = NAME.sub("", text)
    has_currency = CURRENCY.match(text) is not None
    text = CURRENCY.sub(r"\1", text)
    bare = PERCENT.sub("", text)
    is_percent = bare != text
    text = DEGREES.sub("", bare)
    text, unit = without_unit(text)
    value = read_number(_without_separators(text))
    if value is None:
        return None
    return Quantity(value, is_percent, unit or "$" * has_currency, (named[1] or "") if named else "")


def stripped_of_formula_marks(text: str) -> str:
    r"""Without `$...$`, `\(...\)` or `**...**` around it; a lone dollar sign is a currency and stays."""
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**")):
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    return text


def without_unit(text: str) -> tuple[str, str]:
    """The text before its unit, and the unit if it is one of `UNITS`: not apples, powers and compounds."""
    for pattern in (TEXT_UNIT, WORD_UNIT):
        match = pattern.search(text)
        if match and match.start() > 0:
            return text[: match.start()], UNITS.get(match[1].strip().lower().rstrip("."), "")
    return text, ""


def _without_separators(text: str) -> str:
    text = SPACED_THOUSANDS.sub(lambda match: match[0].replace("\\,", ""), text)
    text = SPACING.sub("", LATEX_COMMA.sub(",", text))
    return THOUSANDS.sub(lambda match: match[0].replace(",", ""), text).strip()


def read_number(text: str) -> Fraction | None:
    """The exact value of a plain number, fraction, mixed number or number times a power of ten."""
    if match := PLAIN.fullmatch(text):
        value = Fraction(match["value"])
    elif match := SCIENTIFIC.fullmatch(text):
        exponent = int(match["braced"] or match["digit"])
        if abs(exponent) > LARGEST_EXPONENT:
            return None
        value = Fraction(match["value"] or 1) * Fraction(10) ** exponent
    elif match := LATEX_FRACTION.fullmatch(text) or SLASHED.fullmatch(text):
        parts = match.groupdict("")
        above, below = (Fraction(parts[name] or parts[f"{name}_digit"]) for name in ("above", "below"))
        if below == 0:
            return None
        value = Fraction(parts["whole"] or 0) + above / below
    else:
        return None
    return -value if match["sign"] == "-" else value


def is_number(value: Any) -> bool:
    """Whether a ground truth is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_equal_quantity(answer: Quantity, truth: Quantity, question: str) -> bool:
    """Whether both are the same amount; 100 times or 1/100 of it never is.

    A question about percent fixes the unit, which may be left out: 50% is 50, and 0.5 is another number. Elsewhere the
    sign is arithmetic: 50% is 0.5. Known units must agree, and so must letters before `=`; what one of them leaves out
    is not missed.
    """
    if any(one and other and one != other for one, other in ((answer.unit, truth.unit), (answer.name, truth.name))):
        return False
    if answer.is_percent == truth.is_percent:
        return answer.value == truth.value
    percent, plain = (answer, truth) if answer.is_percent else (truth, answer)
    return percent.value == (plain.value if PERCENT_WORDS.search(question) else 100 * plain.value)


def is_equal_in_base(answer: str, truth: str, question: str) -> bool | None:
    """Whether numbers such as `40_9` have the same digits and base; `None` where neither names its base.

    A base that one of them leaves out must be the question's matter.
    """
    digits, bases = [], []
    for text in (answer.strip(" $."), truth.strip(" $.")):
        match = IN_A_BASE.fullmatch(text)
        digits.append((match[1] if match else text).upper())
        bases.append((match[2] or match[3]) if match else None)
    if bases == [None, None]:
        return None
    is_same_base = bases[0] == bases[1] if None not in bases else BASE_WORD.search(question) is not None
    return digits[0] == digits[1] and is_same_base
