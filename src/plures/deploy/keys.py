"""TLS certificates of a coordinator, and the key pairs with which it and the sites sign.

A coordinator has its own certificate authority (``ca.crt``, ``ca.key``), a server certificate signed by it for its
reverse proxy (``server.crt``, ``server.key``), and a key pair that signs its orders (``coordinator``). A site has one
key pair, which registers its node and signs its answers: the private key never leaves the site, and the public key goes
to the coordinator, who adds it to the federation.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from plures.deploy.proxy import DNS
from plures.errors import PluresError
from plures.files import inside
from plures.names import checked_name

LOOPBACK = ("localhost", "127.0.0.1")
AUTHORITY_DAYS = 3650
SERVER_DAYS = 825


@dataclass(frozen=True)
class Keyring:
    """Locations of the keys in a folder."""

    folder: Path

    @property
    def authority(self) -> Path:
        """The certificate that sites check the server against; public."""
        return self.folder / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Signs server certificates. Not needed while the server runs: keep it offline."""
        return self.folder / "ca.key"

    @property
    def server(self) -> Path:
        return self.folder / "server.crt"

    @property
    def server_key(self) -> Path:
        return self.folder / "server.key"

    def node(self, client: str) -> Path:
        """A site's private key."""
        return inside(self.folder, "nodes", checked_name(client, "client"))

    def node_public(self, client: str) -> Path:
        """A site's public key, which the coordinator adds to the federation and registers."""
        return with_pub(self.node(client))

    @property
    def coordinator(self) -> Path:
        """The private key that signs the coordinator's orders."""
        return self.folder / "coordinator"

    def make_server(self, hosts: Sequence[str] = ()) -> None:
        """Make the server's key and certificate, and the authority that signs it where there is none.

        Args:
            hosts: names and addresses under which sites reach the server, besides ``localhost`` and ``127.0.0.1``.

        Raises:
            PluresError: a key of the server exists already, the authority's key is missing, or a name is not valid.
        """
        names = list(dict.fromkeys([*LOOPBACK, *hosts]))
        alternatives = [alternative(name) for name in names]
        self.refuse(self.server_key, self.server)
        if not self.authority.exists() and not self.authority_key.exists():
            self.make_authority()
        authority, signer = self.read_authority()
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        certificate = (
            certificate_of("plures server", key.public_key(), authority.subject, SERVER_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .sign(signer, hashes.SHA256())
        )
        public = certificate.public_bytes(serialization.Encoding.PEM)
        write_new((self.server_key, pem(key), 0o600), (self.server, public, 0o644))

    def make_authority(self) -> None:
        """Make the certificate authority of this federation.

        Raises:
            PluresError: it exists already.
        """
        self.refuse(self.authority_key, self.authority)
        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "plures federation")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = (
            certificate_of("plures federation", key.public_key(), name, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA384())
        )
        public = certificate.public_bytes(serialization.Encoding.PEM)
        write_new((self.authority_key, pem(key), 0o600), (self.authority, public, 0o644))

    def make_node(self, client: str) -> None:
        """Make a site's key pair.

        Raises:
            PluresError: the site has a key already, or its name cannot be one.
        """
        self.make_pair(self.node(client))

    def make_coordinator(self) -> None:
        """Make the key pair with which the coordinator signs.

        Raises:
            PluresError: it exists already.
        """
        self.make_pair(self.coordinator)

    def make_pair(self, private_key: Path) -> None:
        """Make a key pair: EC P-384 in OpenSSH's format, which is what Flower reads."""
        self.refuse(private_key, with_pub(private_key))
        key = ec.generate_private_key(ec.SECP384R1())
        encoding, none = serialization.Encoding, serialization.NoEncryption()
        private = key.private_bytes(encoding.PEM, serialization.PrivateFormat.OpenSSH, none)
        public = key.public_key().public_bytes(encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        write_new((private_key, private, 0o600), (with_pub(private_key), public + b"\n", 0o644))

    def read_authority(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The authority's certificate and private key."""
        try:
            certificate = x509.load_pem_x509_certificate(self.authority.read_bytes())
            key = serialization.load_pem_private_key(self.authority_key.read_bytes(), None)
        except (OSError, ValueError) as error:
            what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            raise PluresError(
                f"{self.folder}: cannot sign a server certificate: {what}; put ca.crt and ca.key back for a moment, "
                "or remove both to make a new authority, whose ca.crt every site must then get"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise PluresError(f"{self.authority_key} is not the key of {self.authority}: put the right pair together")
        return certificate, key

    def refuse(self, *files: Path) -> None:
        """Refuse to overwrite existing keys."""
        for file in files:
            if file.exists():
                raise PluresError(
                    f"{file} exists and is never overwritten: `plures deploy rotate` replaces the coordinator's; a "
                    "member makes another with --folder new"
                )


def authority_digest(file: Path) -> str:
    """The SHA-256 of the certificate of an authority, in hexadecimal digits: what ``openssl x509 -fingerprint`` shows.

    Raises:
        PluresError: the file is not such a certificate, or it has expired.
    """
    try:
        (certificate,) = x509.load_pem_x509_certificates(file.read_bytes())
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(certificate)
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not one certificate that signs itself"
        raise PluresError(
            f"{file} is not a certificate of an authority: {what}; the coordinator has it as keys/ca.crt"
        ) from error
    if not constraints.ca:
        raise PluresError(
            f"{file} is a certificate, but not that of an authority: the coordinator has it as keys/ca.crt"
        )
    if certificate.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        raise PluresError(
            f"{file} expired on {certificate.not_valid_after_utc:%Y-%m-%d}: ask the coordinator for a new one"
        )
    return certificate.fingerprint(hashes.SHA256()).hex()


def read(file: Path) -> x509.Certificate:
    """Read a certificate from a file."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise PluresError(f"{file} is not a certificate: {what}; `plures deploy keys --host NAME` makes it") from error


def hosts(file: Path) -> list[str]:
    """The names and addresses that a server's certificate is for."""
    names = read(file).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name) for kind in (x509.DNSName, x509.IPAddress) for name in names.get_values_for_type(kind)]


def with_pub(private_key: Path) -> Path:
    """The file of a pair's public key."""
    return private_key.with_name(f"{private_key.name}.pub")


def alternative(name: str) -> x509.GeneralName:
    """Convert a host name or an address to a certificate's subject alternative name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not DNS.fullmatch(name):
        raise PluresError(f"--host {name!r}: give a DNS name in ASCII or an IP address, without a port")
    return x509.DNSName(name)


def certificate_of(name: str, key: ec.EllipticCurvePublicKey, issuer: x509.Name, days: int) -> x509.CertificateBuilder:
    """Common parts of all certificates. Validity begins yesterday, so that a machine whose clock is slow accepts it."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, none = serialization.Encoding, serialization.NoEncryption()
    return key.private_bytes(encoding.PEM, serialization.PrivateFormat.PKCS8, none)


def write_new(*files: tuple[Path, bytes, int]) -> None:
    """Write files that do not exist yet, all or none, each created with its final permissions."""
    made: list[Path] = []
    try:
        for file, content, mode in files:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(file)
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
    except OSError as error:
        for half in made:
            half.unlink(missing_ok=True)
        raise PluresError(f"cannot write {file}: {error}") from error
