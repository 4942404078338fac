from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.rewards.number import parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18),
        ("18.00", 18),
        ("18.", 18),
        ("-3.5", Fraction(-7, 2)),
        ("−3.5", Fraction(-7, 2)),
        ("+7", 7),
        ("1,234,567", 1_234_567),
        ("$1,234.50", Fraction(2469, 2)),
        ("-$5", -5),
        ("$-5", -5),
        (r"\$18", 18),
        ("18%", 18),
        (r"18\%", 18),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("007", 7),
        (r"2{,}500", 2500),
        (r"10\,000", 10_000),
        (r"10\!,000", 10_000),
        (r"\$32{,}000", 32_000),
        (r"\frac{3}{8}", Fraction(3, 8)),
        (r"\dfrac38", Fraction(3, 8)),
        (r"-\frac{3}{8}", Fraction(-3, 8)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        ("1e3", 1000),
        ("1.5E-3", Fraction(3, 2000)),
        ("1e+16", 10**16),
        (r"5 \times 10^{3}", 5000),
        ("10^{-2}", Fraction(1, 100)),
        ("**48**", 48),
        ("*48*", 48),
        ("`48`", 48),
        ("**48** apples", 48),
        ("$48$", 48),
        (r"\(48\)", 48),
        (r"\mathbf{\frac{3}{8}}", Fraction(3, 8)),
        ("x = 48", 48),
        ("f(2) = 48", 48),
        (r"\text{Total} = 48", 48),
        (" 18 apples. ", 18),
        ("48, which is it!", 48),
        ("48m", 48),
        (r"48\text{ m}^2", 48),
        (r"48\ \mathrm{km/h}", 48),
        ("48 cm^{3}", 48),
        (r"48^\circ", 48),
        ("48 dollars per hour", 48),
        ("48 元", 48),
        ("1.234.567", 1_234_567),
        ("1.234,56", Fraction(30864, 25)),
        ("1 234 567", 1_234_567),
        ("1'234'567.5", Fraction(2_469_135, 2)),
        ("12,34,567", 1_234_567),
        ("1.234", Fraction(617, 500)),
        (r"0.\overline{3}", Fraction(1, 3)),
        ("-1.2(34)", Fraction(-611, 495)),
        ("½", Fraction(1, 2)),
        ("1½ cups", Fraction(3, 2)),
        ("3.5 million dollars", 3_500_000),
        ("10**3", 1000),
        ("¥500", 500),
        ("US$20", 20),
        ("USD 20", 20),
        ("Answer: 18", 18),
        ("= 18", 18),
        ("18 m²", 18),
    ],
)
def test_a_number_is_read_exactly_as_people_write_it(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "eighteen", "nan", "inf", "١٨", "9" * 5000),
        *("18 or 19", "1,2", "1,2345", "1.2.3", "3:4", "5 hours 30 minutes", "x = 3, y = 4"),
        *("3/0", r"\frac{3}{0}", "1e999999999"),
        *(
            r"48\pi",
            "48π",
            "4!",
            "48x",
            "48 x",
            "48x^2",
            "48i",
            "48k",
            r"48\sqrt{2}",
            "48^2",
            "48 + x",
            r"48 \pm 2",
            "101_2",
            "48²",
            "48 pi",
            "48 squared",
            "12 and a half",
            "1 234 / x",
        ),
        *(r"\frac{\pi}{2}", r"\frac{3}{x}", r"\frac{48}{m}", r"\frac{1}{2}x", "48/x", "2x = 48", "2**3", "2**3**1"),
    ],
)
def test_what_is_not_one_number_has_no_value(text):
    assert parse_number(text) is None


@given(
    number=st.fractions(-1000, 1000, max_denominator=100), unit=st.sampled_from(["", " apples", r"\text{ m}^2", r"\%"])
)
def test_dressing_a_number_does_not_change_it(number, unit):
    sign = "-" if number < 0 else ""
    latex = rf"{sign}\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"
    for text in (f"{number}{unit}", f"{latex}{unit}", f"${latex}$", f"x = {latex}{unit}", f"**{number}**{unit}"):
        assert parse_number(text) == number
    for text in (f"{number}\\pi", f"{latex}x", f"{number} + 1"):
        assert parse_number(text) is None


@given(st.text(max_size=120))
def test_any_text_is_read_or_not_but_never_an_error(text):
    assert parse_number(text) is None or isinstance(parse_number(text), Fraction)
