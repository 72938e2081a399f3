"""Ed25519 signatures: who vouches for a shard or an adapter. Keys are PEM files, as of OpenSSL.

The only file that needs the package cryptography: import it where a signature is made or verified.
"""

from pathlib import Path

from moesaic.errors import ConfigError
from moesaic.esft.manifest import Signature

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
    from cryptography.hazmat.primitives.serialization import (
        load_pem_private_key,
        load_pem_public_key,
    )
except ImportError:
    raise ConfigError(
        "signatures need the package cryptography, which is not installed; "
        "run: pip install 'moesaic[sign]'"
    ) from None

_MAKE = "make one with: openssl genpkey -algorithm ed25519 -out key.pem"
_EXPORT = "write it with: openssl pkey -in key.pem -pubout -out key.pub"


def sign(message: bytes, key: Ed25519PrivateKey) -> Signature:
    """The signature of a message."""
    public = key.public_key().public_bytes_raw()
    return Signature(key=public.hex(), value=key.sign(message).hex())


def verifies(signature: Signature, message: bytes) -> bool:
    """Whether the owner of the signature's key signed this message."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
        key.verify(bytes.fromhex(signature.value), message)
    except (InvalidSignature, ValueError):  # ValueError: the key is no point of the curve
        return False
    return True


def read_private_key(path: Path | str) -> Ed25519PrivateKey:
    """The key in a PEM file that is not encrypted.

    Raises:
        ConfigError: if there is none.
    """
    text = _read(path, _MAKE)
    try:
        key = load_pem_private_key(text, password=None)
    except TypeError:
        raise ConfigError(
            f"{path} is encrypted; decrypt it with: openssl pkey -in {path} -out key.pem"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds no Ed25519 private key in PEM; {_MAKE}")
    return key


def read_public_key(path: Path | str) -> str:
    """The public key in a PEM file, in hexadecimal.

    Raises:
        ConfigError: if there is none.
    """
    text = _read(path, _EXPORT)
    try:
        key = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} holds no Ed25519 public key in PEM; {_EXPORT}")
    return key.public_bytes_raw().hex()


def _read(path: Path | str, fix: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); {fix}") from None
