"""The call styles of auto-attack and torchattacks, for scripts that exist: change the import, keep the rest."""

from gambeson.compat.auto_attack import AutoAttack
from gambeson.compat.torchattacks import APGD, APGDT, FAB, FGSM, PGD, PGDL2, TPGD, Square

__all__ = ["APGD", "APGDT", "FAB", "FGSM", "PGD", "PGDL2", "TPGD", "AutoAttack", "Square"]
