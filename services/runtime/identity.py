"""Keyed pseudonyms: what leaves the archive instead of UIDs, accession numbers and patient IDs (promise 5).

A pseudonym is the first 128 bits of HMAC-SHA-256 over the kind and the identifier. The key never leaves the hospital;
without it the mapping cannot be rebuilt by trying identifiers.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from models.patient_ids import same_id
from schemas.settings import Settings
from services.runtime.errors import InvalidInput

KEY_FILE = "pseudonym.key"


class Pseudonyms:
    """Maps identifiers to pseudonyms with one secret key (32 bytes of entropy or more).

    A patient is the patient ID alone, unless `separate_issuers` says that the site's issuers give the same ID to several
    people: most objects name no issuer, so one person would have several roles (decision 0027).
    """

    def __init__(self, key: bytes, *, separate_issuers: bool = False) -> None:
        self._key = key
        self._separate_issuers = separate_issuers

    def study(self, study_instance_uid: str) -> str:
        """Pseudonym of a StudyInstanceUID (0020,000D)."""
        return self._of("study", study_instance_uid)

    def series(self, series_instance_uid: str) -> str:
        """Pseudonym of a SeriesInstanceUID (0020,000E)."""
        return self._of("series", series_instance_uid)

    def accession(self, accession_number: str, issuer: str = "") -> str:
        """Pseudonym of an AccessionNumber (0008,0050) within its issuer."""
        return self._of("accession", f"{issuer}\x1f{accession_number}")

    def patient(self, patient_id: str, issuer: str = "") -> str:
        """Pseudonym of a PatientID (0010,0020), and of its IssuerOfPatientID (0010,0021) where issuers are told apart.

        Case and blanks do not count: people type IDs at consoles.
        """
        return self._of("patient", f"{issuer if self._separate_issuers else ''}\x1f{same_id(patient_id)}")

    def patient_of(self, study_instance_uid: str) -> str:
        """Pseudonym of the patient of a study without PatientID: the study stands for its patient."""
        return self._of("patient", f"{study_instance_uid}\x1f")

    def _of(self, kind: str, identifier: str) -> str:
        message = f"{kind}\x1e{identifier.strip()}".encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:32]


def load_pseudonyms(settings: Settings) -> Pseudonyms:
    """Take the key from the settings, else from `state_dir/pseudonym.key`, which is made at first use (mode 0600).

    Raises InvalidInput where the key is missing beside an archive that was filed with one: a new key would file every study anew.
    """
    configured = settings.pseudonym_key.get_secret_value()
    path = settings.state_dir / KEY_FILE
    if not configured and not path.exists() and _holds_studies(settings.archive_dir):
        raise InvalidInput(
            f"{path} is missing, and the archive was filed with it: restore it, or set RECLAIM_PSEUDONYM_KEY; see docs/runbook.md"
        )
    key = configured.encode() if configured else _kept_key(path)
    return Pseudonyms(key, separate_issuers=settings.separate_issuers)


def _holds_studies(archive: Path) -> bool:
    return archive.is_dir() and any(len(shard.name) == 2 and any(shard.iterdir()) for shard in archive.iterdir() if shard.is_dir())


def _kept_key(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    if not path.exists():
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(32).encode())
            file.flush()
            os.fsync(file.fileno())
        _link_once(fresh, path)
    return path.read_bytes()


def _link_once(fresh: Path, path: Path) -> None:
    """Publish the new key unless another process was quicker; link(2) fails instead of replacing."""
    try:
        path.hardlink_to(fresh)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
