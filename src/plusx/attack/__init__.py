"""Adversarial attacks on trained networks, and training against them."""

from plusx.attack.apgd import Apgd, ApgdTargeted
from plusx.attack.attack import Attack
from plusx.attack.pgd import Fgsm, Pgd
from plusx.attack.square import Square


ATTACKS: dict[str, type[Attack]] = {
    "fgsm": Fgsm,
    "pgd": Pgd,
    "apgd-ce": Apgd,
    "apgd-t": ApgdTargeted,
    "square": Square,
}
