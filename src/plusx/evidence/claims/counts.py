"""Parameters and multiply-adds, to the unit: tables of what is published, and claims from them."""

from plusx.evidence.claims.claim import Claim
from plusx.zoo import ZOO


# ImageNet, 1,000 classes, as torchvision, timm or the papers' arithmetic have them.
IMAGENET: dict[str, int] = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "plain18": 11_515_688,
    "plain34": 21_623_848,
    "resnet34_a": 21_623_848,
    "resnet34_c": 22_716_840,
    "resnet50_a": 22_780_456,
    "resnet101_a": 41_772_584,
    "resnet152_a": 57_416_232,
    "preact_resnet18": 11_687_720,
    "preact_resnet50": 25_549_352,
    "preact_resnet200": 64_666_152,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet161": 28_681_000,
    "se_resnet18": 11_778_592,
    "se_resnet50": 28_088_024,
    "eca_resnet50": 25_557_118,
    "cbam_resnet50": 28_089_624,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "alexnet": 61_100_840,
    "googlenet": 6_624_904,
    "convnext_tiny": 28_589_128,
    "vit_base_patch16_gap": 86_566_120,
    "botnet50": 20_838_440,
    "chexnet": 6_968_206,  # 14 findings
    "r3d_18": 33_371_472,  # 400 actions
    "quartznet15x5": 18_924_381,  # 29 letters
    "res8": 110_307,  # 12 words, here and below
    "res15": 237_882,
    "res26": 438_357,
    "res8_narrow": 19_905,
    "res15_narrow": 42_648,
    "res26_narrow": 78_387,
}

# CIFAR-10: the depth, and the counts with the shortcuts A (or none), B and C.
CIFAR_RESNETS: tuple[tuple[int, int, int, int], ...] = (
    (20, 269_722, 272_474, 283_962),
    (32, 464_154, 466_906, 489_594),
    (44, 658_586, 661_338, 695_226),
    (56, 853_018, 855_770, 900_858),
    (110, 1_727_962, 1_730_714, 1_826_202),
    (1202, 19_421_274, 19_424_026, 20_538_714),
)

# CIFAR with 10 and with 100 classes; 0 where only one is known.
CIFAR: dict[str, tuple[int, int]] = {
    "preact_resnet20": (269_722, 0),
    "preact_resnet56": (853_018, 0),
    "preact_resnet110": (1_727_962, 0),
    "preact_resnet20_b": (272_282, 0),
    "preact_resnet56_b": (855_578, 0),
    "preact_resnet110_b": (1_730_522, 0),
    "resnet164": (1_704_154, 0),
    "preact_resnet164": (1_703_258, 0),
    "preact_resnet1001": (10_327_706, 0),
    "wrn16_4": (2_748_890, 2_772_020),
    "wrn16_8": (10_961_370, 11_007_540),
    "wrn28_10": (36_479_194, 36_536_884),
    "wrn40_4": (8_949_210, 8_972_340),
    "wrn40_10": (55_841_754, 55_899_444),
    "resnext29_4x64d": (17_562_442, 17_654_692),
    "resnext29_8x64d": (34_426_698, 34_518_948),
    "resnext29_16x64d": (68_155_210, 68_247_460),
    "densenet40_12": (1_019_722, 1_060_132),
    "densenet100_12": (6_979_642, 7_084_852),
    "densenet100_24": (27_249_082, 27_457_972),
    "densenet_bc100_12": (769_162, 800_032),
    "densenet_bc250_24": (15_324_406, 15_480_556),
    "densenet_bc190_40": (25_624_430, 25_821_620),
    "resnet18_cifar": (11_173_962, 0),
    "resnet34_cifar": (21_282_122, 0),
    "resnet50_cifar": (23_520_842, 0),
    "resnet101_cifar": (42_512_970, 0),
    "resnet152_cifar": (58_156_618, 0),
    "vgg16_cifar": (14_728_266, 0),
}

MULTIPLY_ADDS: dict[str, int] = {
    "resnet18": 1_814_073_344,
    "resnet34": 3_663_761_408,
    "resnet50_v1": 3_857_973_248,
    "resnet50": 4_089_184_256,
    "resnet101_v1": 7_570_194_432,
    "resnet101": 7_801_405_440,
    "resnet152_v1": 11_282_415_616,
    "resnet152": 11_513_626_624,
    "resnet20": 40_551_040,
    "resnet56": 125_485_696,
    "resnet110": 252_887_680,
    "preact_resnet164": 244_500_992,
}


def _count(metric: str, network: str, value: int, num_classes: int | None = None) -> Claim:
    name = metric.replace(" ", "-")
    ending = "" if num_classes is None else f"-cifar{num_classes}"
    classes = "" if num_classes is None else f" with {num_classes} classes"
    return Claim(
        id=f"{name}-{network}{ending}",
        statement=f"{network}{classes} has {value:,} {metric}"
        if metric == "parameters"
        else f"{network} takes {value:,} {metric} an input",
        kind="arithmetic",
        check=name,
        source=ZOO[network].source,
        metric=metric,
        value=value,
        network=network,
        num_classes=num_classes,
    )


def _shortcuts() -> list[Claim]:
    """The residual networks of CIFAR-10 with the shortcuts A, B and C, and their plain twins."""
    found = []
    for depth, a, b, c in CIFAR_RESNETS:
        names = (f"resnet{depth}", f"plain{depth}", f"resnet{depth}_b", f"resnet{depth}_c")
        found += [_count("parameters", name, count) for name, count in zip(names, (a, a, b, c))]
    return found


COUNTS: tuple[Claim, ...] = (
    *(_count("parameters", name, value) for name, value in IMAGENET.items()),
    *_shortcuts(),
    *(_count("parameters", name, ten) for name, (ten, _) in CIFAR.items()),
    *(_count("parameters", name, hundred, 100) for name, (_, hundred) in CIFAR.items() if hundred),
    *(_count("multiply-adds", name, value) for name, value in MULTIPLY_ADDS.items()),
    Claim(
        id="parameters-googlenet-auxiliary",
        statement="GoogLeNet with its two auxiliary heads has 13,004,888 parameters",
        kind="arithmetic",
        check="parameters-with-auxiliary-heads",
        source="Szegedy 2014, table 1, torchvision",
        metric="parameters",
        value=13_004_888,
        network="googlenet",
    ),
    Claim(
        id="plain-twin-counts",
        statement="A plain network has exactly the parameters and multiply-adds of the residual "
        "network of the same depth with shortcut A",
        kind="arithmetic",
        check="twins",
        source="He 2015, section 4.2",
        metric="largest difference in parameters or multiply-adds over 8 depths",
        value=0,
    ),
    Claim(
        id="option-b-minus-a",
        statement="On CIFAR the projections of shortcut B add 2,752 parameters to shortcut A, at "
        "every depth",
        kind="arithmetic",
        check="option-b-minus-a",
        source="He 2015, section 4.2",
        metric="parameters that B has more than A",
        value=2_752,
    ),
    Claim(
        id="literature-misprint-resnet1202",
        statement="ResNet-1202 has 19.4 million parameters",
        kind="arithmetic",
        check="parameters",
        source="He 2016, table 4",
        metric="parameters",
        value=19.4e6,
        tolerance=0.05e6,
        network="resnet1202",
    ),
    Claim(
        id="literature-misprint-resnet1001",
        statement="The pre-activation ResNet-1001 has 10.2 million parameters",
        kind="arithmetic",
        check="parameters",
        source="He 2016, table 4",
        metric="parameters",
        value=10.2e6,
        tolerance=0.05e6,
        network="preact_resnet1001",
        truth="the definition gives 10,327,706, which rounds to 10.3 million",
    ),
)
