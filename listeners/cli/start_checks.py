"""What must be right before a process may store anything."""

from sqlmodel import select

from schemas.tables import Study
from services.runtime.errors import InvalidInput
from services.runtime.service import Context


def refuse_another_key(context: Context) -> None:
    """InvalidInput where the studies were filed with another pseudonym key than the one in use.

    With it every patient would have a second role, every study be filed again, and no label find its case.
    """
    with context.database.read() as session:
        study = session.exec(select(Study.study_uid, Study.study_key).limit(1)).first()
    if study is not None and context.pseudonyms.study(study[0]) != study[1]:
        raise InvalidInput(
            "the pseudonym key is not the one that the studies were filed with: "
            f"restore {context.settings.state_dir}/pseudonym.key or RECLAIM_PSEUDONYM_KEY; see docs/runbook.md"
        )
