"""Base58, Solana's way of writing bytes, for data of any length.

solders writes addresses and signatures by itself; instruction data and whole submissions have no
fixed length. Callers bound the length, since the work grows with its square. A character outside
the alphabet raises ValueError.
"""

from typing import Final

ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUES: Final = {character: value for value, character in enumerate(ALPHABET)}


def encode(data: bytes) -> str:
    """Write bytes; each leading zero byte is a leading `1`."""
    zeros = len(data) - len(data.lstrip(b"\0"))
    number = int.from_bytes(data, "big")
    characters = []
    while number:
        number, value = divmod(number, 58)
        characters.append(ALPHABET[value])
    return "1" * zeros + "".join(reversed(characters))


def decode(text: str) -> bytes:
    """Read bytes. Raises ValueError where a character is not of the alphabet."""
    digits = text.lstrip("1")
    number = 0
    for character in digits:
        value = _VALUES.get(character)
        if value is None:
            message = f"{character!r} is not a base58 character"
            raise ValueError(message)
        number = number * 58 + value
    zeros = len(text) - len(digits)
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
