"""A calculator for whole numbers: what an assistant's <tool>12*34</tool> is answered with.

calculate("2 + 3 × (4 - 1)")  ->  "11"
"""

import re

CALL = re.compile(r"<tool>(.*)</tool>\s*", re.DOTALL)
LONGEST = 100  # characters of an expression
LARGEST = 10**30
TOKEN = re.compile(r"\s*([0-9]+|[-+*/()−×÷])")
SAME = {"−": "-", "×": "*", "÷": "/"}


class NotCalculated(ValueError):
    """Why an expression has no value."""


def answer_to(reply: str) -> str | None:
    """The value of the expression in a reply, or what is wrong with it; None if the reply calls no tool."""
    call = CALL.fullmatch(reply.strip())
    try:
        return None if call is None else calculate(call[1])
    except NotCalculated as error:
        return f"error: {error}"


def calculate(expression: str) -> str:
    """The value of an expression of whole numbers, + - * / and parentheses. Raises NotCalculated."""
    if len(expression) > LONGEST:
        raise NotCalculated(f"longer than {LONGEST} characters")
    tokens, position = [], 0
    while expression[position:].strip():
        found = TOKEN.match(expression, position)
        if found is None:
            raise NotCalculated(f"unexpected {expression[position:].strip()[:1]!r}")
        tokens.append(SAME.get(found[1], found[1]))
        position = found.end()
    tokens.append("end")
    value = _sum(tokens)
    if tokens != ["end"]:
        raise NotCalculated(f"unexpected {tokens[0]!r}")
    return str(value)


def _sum(tokens: list[str]) -> int:
    """Terms between + and -. The tokens that are read are taken off the list."""
    value = _product(tokens)
    while tokens[0] in "+-":
        sign = 1 if tokens.pop(0) == "+" else -1
        value = _limited(value + sign * _product(tokens))
    return value


def _product(tokens: list[str]) -> int:
    """Factors between * and /."""
    value = _factor(tokens)
    while tokens[0] in "*/":
        if tokens.pop(0) == "*":
            value = _limited(value * _factor(tokens))
            continue
        divisor = _factor(tokens)
        if divisor == 0:
            raise NotCalculated("division by zero")
        if value % divisor:
            raise NotCalculated(f"{value} / {divisor} is no whole number")
        value //= divisor
    return value


def _factor(tokens: list[str]) -> int:
    """A number, a sign before a factor, or a sum in parentheses."""
    token = tokens[0]
    if token == "end":
        raise NotCalculated("unexpected end")
    del tokens[0]
    if token == "-":
        return -_factor(tokens)
    if token == "(":
        value = _sum(tokens)
        if tokens[0] != ")":
            raise NotCalculated("a parenthesis is not closed")
        del tokens[0]
        return value
    if not token.isdecimal():
        raise NotCalculated(f"unexpected {token!r}")
    return _limited(int(token))


def _limited(value: int) -> int:
    if abs(value) > LARGEST:
        raise NotCalculated(f"beyond {LARGEST:.0e}")
    return value
