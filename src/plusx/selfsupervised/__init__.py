"""Self-supervised learning: methods that train a network's embedding without labels."""

from plusx.selfsupervised.autoencoder import Autoencoder
from plusx.selfsupervised.barlow import BarlowTwins
from plusx.selfsupervised.byol import Byol
from plusx.selfsupervised.contrastive import SimClr, SupCon
from plusx.selfsupervised.method import SelfSupervised
from plusx.selfsupervised.moco import MoCo
from plusx.selfsupervised.rotation import Rotation
from plusx.selfsupervised.simsiam import SimSiam


# by the kind of [method]; the fields of its table are the keyword arguments
METHODS: dict[str, type[SelfSupervised]] = {
    "simclr": SimClr,
    "byol": Byol,
    "simsiam": SimSiam,
    "barlow": BarlowTwins,
    "moco": MoCo,
    "supcon": SupCon,
    "rotation": Rotation,
    "autoencoder": Autoencoder,
}
