"""The storage SCP of pynetdicom's documentation: decode the data set in the handler, add file meta, `save_as`.

`python documented_handler.py PORT FOLDER`
"""

import sys
from pathlib import Path
from typing import Any

from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification


def main(port: int, folder: Path) -> None:
    """Serve until killed."""

    def handle_store(event: Any) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
        return 0x0000

    ae = AE("BENCH")
    ae.maximum_associations = 300
    ae.supported_contexts = AllStoragePresentationContexts
    ae.add_supported_context(Verification)
    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, handle_store)])


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
