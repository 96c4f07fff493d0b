"""What each role may order and decide on. Pure."""

from typing import Final

from schemas.vocabulary import OrderKind, UserRole

AGENT_KINDS: Final = frozenset({OrderKind.REPORT, OrderKind.REMEDY, OrderKind.LABEL_REQUEST})
"""What the agents may order without a person."""

_RADIOLOGIST = frozenset({OrderKind.REPORT, OrderKind.LABEL_REQUEST})
_ML_OWNER = _RADIOLOGIST | {OrderKind.REMEDY, OrderKind.STOP_SERVING, OrderKind.RESUME_SERVING}
ROLE_KINDS: Final[dict[UserRole, frozenset[OrderKind]]] = {
    UserRole.VIEWER: frozenset(),
    UserRole.RADIOLOGIST: _RADIOLOGIST,
    UserRole.ML_OWNER: _ML_OWNER,
    UserRole.ADMIN: _ML_OWNER | {OrderKind.ROLLBACK},
}
APPROVERS: Final = frozenset({UserRole.ML_OWNER, UserRole.ADMIN})
FOUR_EYES: Final = frozenset({OrderKind.REMEDY, OrderKind.ROLLBACK})
"""What a person orders only together with a second one, where the site wants four eyes."""


def may_decide(role: UserRole | None, kind: OrderKind) -> bool:
    """Whether a person with this role may approve or reject an order of this kind."""
    return role in APPROVERS and role is not None and kind in ROLE_KINDS[role]


def needs_another(kind: OrderKind, ordered_by: str, decider: str, *, four_eyes: bool) -> bool:
    """Whether somebody else has to approve: the decider ordered it, and the site wants four eyes on this kind.

    A name in other letters is the same person: front ends and directories write logins as they like.
    """
    return four_eyes and kind in FOUR_EYES and ordered_by.casefold() == decider.casefold()
