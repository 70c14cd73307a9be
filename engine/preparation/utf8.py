"""Text that is not UTF-8: what it seems to be, and the command that makes UTF-8 of it."""

import codecs
import re
from pathlib import Path

from engine.errors import UserError
from engine.preparation.compression import filter_command

STANDARD_INPUT = "standard input"  # what it is called in messages, where a file has its path
# The longer marks first: that of UTF-16 begins that of UTF-32.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
LOOKED_AT = 1000  # bytes from which an encoding is guessed
HALF_OF_A_PAIR = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")  # a surrogate, as UTF-8 would write it
BEYOND_ASCII = re.compile(rb"[\x80-\xff]+")
WESTERN = "CP1252"


def check_not_utf16(beginning: bytes, file: str) -> None:
    """Raise UserError where a file begins as UTF-16 or UTF-32 does."""
    beginning = beginning[:LOOKED_AT]
    found = [encoding for mark, encoding in MARKS.items() if beginning.startswith(mark)]
    for encoding, zeros in (("UTF-16LE", beginning[1::2]), ("UTF-16BE", beginning[0::2])):
        if zeros.count(0) * 3 > len(beginning):
            found.append(encoding)
    if found:
        raise UserError(f"{file} is not UTF-8, but {found[0]}; {conversion(file, found[0])}")


def not_utf8(where: str, position: str, error: UnicodeDecodeError, file: str) -> UserError:
    """The error for bytes that are not UTF-8: what they seem to be, and how to convert the file."""
    content, start = error.object, error.start
    half = HALF_OF_A_PAIR.match(content, start)
    if half is not None:
        code = ord(half[0].decode("utf-8", errors="surrogatepass"))
        return UserError(
            rf"{where} holds \u{code:04x} ({position}): half of a pair that together is one character, "
            "an emoji perhaps, and no character by itself; mend it there, or go on with --errors replace"
        )
    reason = f"{where} is not UTF-8 ({position})"
    if not content[:start].isascii():
        return UserError(
            f"{reason}, though the text before is; it is damaged there, or comes from files of different "
            "encodings; go on with --errors replace"
        )
    encoding = likely_encoding(content, start)
    if encoding == WESTERN:
        reason += ", and seems to be CP1252 (Windows, Western European)"
    return UserError(f"{reason}; {conversion(file, encoding)}; or go on with --errors replace")


def likely_encoding(content: bytes, start: int) -> str:
    """CP1252, where bytes beyond ASCII stand alone or in twos; else "ENCODING"."""
    try:
        content.decode(WESTERN)
    except UnicodeDecodeError:
        return "ENCODING"
    stretches = BEYOND_ASCII.findall(content, start, start + LOOKED_AT)
    return WESTERN if len(b"".join(stretches)) <= 2 * len(stretches) else "ENCODING"


def conversion(file: str, encoding: str) -> str:
    """Advice on converting a file to UTF-8."""
    command = f"iconv -f {encoding} -t UTF-8"
    if file == STANDARD_INPUT:
        return f"pipe it through {command}"
    if not Path(file).is_file() or Path(file).suffix.lower() == ".parquet":
        return "convert it where it is written"
    return f"convert it: {filter_command(command, file, 'utf8')}"
