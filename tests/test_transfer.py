"""Beginning with what was learned before: what is trained, how fast, and whose weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from plusx import cli, create_model
from plusx.data.dataset import images_of
from plusx.data.readers.open import open_data
from plusx.data.sets.synthetic import open_bands
from plusx.data.splits import groups_held_out
from plusx.data.subset import few_per_class, of_bands, of_classes
from plusx.grammar.heads import UNet
from plusx.nn.frozen import depths_of, freeze_below, freeze_norms, head_depth, rates_by_depth
from plusx.nn.with_head import NetworkWithHead
from plusx.recipe import load_recipe, to_toml
from plusx.recipe.reading import parse_recipe
from plusx.run import build, load_run, train
from plusx.run.build import resolve_weights
from plusx.run.distributed import DistributedContext
from plusx.run.progress import Display
from plusx.run.training import make_trainer
from plusx.store import load_tensors
from plusx.study.catalogue import EXPERIMENTS
from plusx.study.runner import study
from plusx.tasks.classify import Classify
from plusx.train.optim import make_optimizer
from plusx.weights import save_network
from plusx.weights.input_conv import adapt_input_conv


SMALL = ["net.base=resnet20", "data.kind=digits", "data.augment=", "epochs=1", "batch_size=40",
         "data.train=80", "device.threads=1", "optim.lr=0.05"]  # fmt: skip


def _recipe(*overrides: str) -> Any:
    return load_recipe("digits-resnet20", [*SMALL, *overrides])


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_tensors(folder / "model.safetensors")[0])


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the digits 0 to 4."""
    folder = tmp_path_factory.mktemp("before") / "run"
    train(_recipe("data.classes=[0,1,2,3,4]"), folder, progress=False)
    return folder


def _begun(before: Path, *overrides: str) -> Any:
    return _recipe("data.classes=[5,6,7]", f"net.weights={before}", *overrides)


@pytest.mark.slow
def test_frozen_norms_are_bit_equal_after_an_epoch(before: Path, tmp_path: Path) -> None:
    train(_begun(before, "net.freeze_norms=true"), tmp_path / "run", progress=False)
    first, last = _weights(before), _weights(tmp_path / "run")
    norms = {name for name in first if "bn" in name or "downsample.1" in name}
    assert any("running_mean" in name for name in norms)
    assert all(torch.equal(first[name], last[name]) for name in norms)
    moved = [name for name in first if name not in norms and not name.startswith("fc")]
    assert all(not torch.equal(first[name], last[name]) for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "trained"), [("head", ("fc",)), ("1", ("layer3", "fc"))])
def test_frozen_parameters_stay_bit_for_bit(
    before: Path, tmp_path: Path, way: str, trained: tuple[str, ...]
) -> None:
    result = train(_begun(before, f"net.train={way}"), tmp_path / "run", progress=False)
    first, last = _weights(before), _weights(tmp_path / "run")
    assert last["fc.weight"].shape[0] == 3  # a new head for other classes
    for name, tensor in first.items():
        if not name.startswith("fc"):
            assert torch.equal(tensor, last[name]) != name.startswith(trained), name
    assert result["parameters"] == sum(
        p.numel() for p in load_run(tmp_path / "run").net.parameters()
    )


@pytest.mark.slow
def test_training_only_a_part_of_random_weights_is_a_warning(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(_recipe("net.train=head"), tmp_path / "drawn")
    assert '[net] train = "head" without [net] weights' in capsys.readouterr().err
    train(_begun(before, "net.train=head"), tmp_path / "learned")
    assert "without" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_frozen_run_resumes(before: Path, tmp_path: Path) -> None:
    """Depth rates and what is frozen are the recipe's, and the state is whole without them."""
    overrides = ["net.train=1", "optim.layer_decay=0.5", "checkpoint.every_steps=1", "epochs=2"]
    whole = train(_begun(before, *overrides), tmp_path / "whole", progress=False)
    half = _begun(before, *overrides)
    trainer = make_trainer(half, tmp_path / "cut", DistributedContext())
    trainer.out.mkdir()
    trainer.begin(exact=True, allow_data_change=False)
    with trainer.open_resources():
        trainer.advance(Display(quiet=True), 1)
        trainer.save()
    resumed = train(half, tmp_path / "cut", progress=False)
    assert resumed["train"] == whole["train"]
    one, other = _weights(tmp_path / "whole"), _weights(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_frozen_norms_stay_so_through_train() -> None:
    net = create_model("resnet20", seed=0)
    x = torch.randn(2, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected = net.eval()(x)
    count = freeze_norms(net)
    assert count == sum(isinstance(part, nn.BatchNorm2d) for part in net.modules())
    assert torch.equal(net.train()(x), expected)
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert freeze_norms(net) == count  # a second time changes nothing


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        pytest.param("densenet40_12", marks=pytest.mark.slow),
        pytest.param("preact_resnet20", marks=pytest.mark.slow),
    ],
)
def test_depth_rises_from_the_stem_to_the_head(name: str) -> None:
    with torch.device("meta"):
        net = create_model(name)
    depths = depths_of(net)
    assert set(depths.values()) == set(range(head_depth(net) + 1))
    assert depths["fc.weight"] == head_depth(net) == 4
    assert {depth for parameter, depth in depths.items() if parameter.startswith("layer2")} == {2}
    rates = rates_by_depth(net, 0.5)
    assert (rates["fc.bias"], rates[next(iter(rates))]) == (1.0, 0.0625)


@pytest.mark.slow
def test_layers_after_the_features_are_the_head() -> None:
    with torch.device("meta"):
        net = NetworkWithHead(create_model("resnet20"), UNet(width=8), 2)
    depths = depths_of(net)
    assert {depths[name] for name in depths if not name.startswith("backbone.")} == {4}
    freeze_below(net, head_depth(net))
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {name for name in depths if not name.startswith("backbone.")}


def test_groups_of_the_optimizer_have_the_rates_of_their_depth() -> None:
    net = create_model("resnet20", seed=0)
    rates = rates_by_depth(net, 0.5)
    named = {parameter: rates[name] for name, parameter in net.named_parameters()}
    optimizer = make_optimizer(Classify(net), decay_norms=False, lr_scales=named)
    checked = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["lr_scale"] == named[parameter]
            checked += 1
    assert checked == len(named)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 1e-4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["net.train=4"], r"train = 4: resnet20 has 3 stages"),
        (["net.norm=group", "net.freeze_norms=true"], "resnet20 has no batch norms"),
        (["data.classes=[5,seven]"], "digits has no class 'seven'"),
        (["data.classes=[5]"], "at least two classes"),
        (["data.classes=[5,5]"], "'5' is listed twice"),
        (["data.per_class=10"], "train and per_class: give only one"),
        (["data.bands=[2]"], "digits has no band 2, it has 1 to 1"),
    ],
)
def test_invalid_tables_are_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(_recipe(*overrides), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_stands_for_the_weights_in_it(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "cats"
    run.mkdir(parents=True)
    with pytest.raises(ValueError, match="cats is not a run's folder"):
        resolve_weights(str(run))
    (run / "recipe.toml").touch()
    with pytest.raises(ValueError, match="cats is not finished"):
        resolve_weights(str(run))
    (run / "model.safetensors").touch()
    assert resolve_weights(str(run)) == str(run / "model.safetensors")
    with pytest.raises(ValueError, match=r"did you mean .*cats\?"):
        resolve_weights(str(tmp_path / "runs"))
    assert resolve_weights("IMAGENET1K_V2") == "IMAGENET1K_V2"


def test_a_recipe_that_freezes_is_written_and_read_again() -> None:
    recipe = _recipe("net.train=2", "optim.layer_decay=0.5", "data.classes=[1,2]")
    assert parse_recipe(to_toml(recipe)) == recipe


def test_classes_and_images_of_each_are_chosen() -> None:
    digits = open_data("digits")
    some = of_classes(digits, ("7", "2"))
    assert some.classes == ("7", "2")
    assert torch.equal(images_of(some)[some.labels == 0], images_of(digits)[digits.labels == 7])
    few = few_per_class(some, 5, seed=1)
    assert few.labels.bincount().tolist() == [5, 5]
    assert few.fingerprint() != few_per_class(some, 5, seed=2).fingerprint()
    with pytest.raises(ValueError, match=r"per_class = 1000: digits has \d+ images of '7'"):
        few_per_class(some, 1000, seed=0)


@pytest.mark.slow
def test_bands_are_selected_in_the_given_order() -> None:
    source = open_bands("test", None, 0)
    three = of_bands(source, (4, 3, 2))
    assert torch.equal(images_of(three), images_of(source)[:, [3, 2, 1]])
    assert (three.modality.channels, three.modality.bands) == (3, (4, 3, 2))


@pytest.mark.parametrize("several", [False, True])
def test_groups_stay_on_one_side(several: bool) -> None:
    random = torch.Generator().manual_seed(0)
    groups = [str(int(number)) for number in torch.randint(0, 40, (200,), generator=random)]
    labels = torch.randint(0, 4, (200,), generator=random)
    if several:
        labels = nn.functional.one_hot(labels).float()
    held = groups_held_out(labels, groups, 0.2, 7)
    training = sorted(set(range(200)) - set(held.tolist()))
    assert not {groups[i] for i in held} & {groups[i] for i in training}
    assert 30 <= len(held) <= 50  # the nearest that groups of about five allow
    assert held.tolist() == groups_held_out(labels, groups, 0.2, 7).tolist()
    with pytest.raises(ValueError, match="none of 1 groups can be left out"):
        groups_held_out(labels, ["one"] * 200, 0.2, 0)


@pytest.mark.slow
def test_filters_for_colours_serve_other_channels(tmp_path: Path) -> None:
    """Channels that are alike are answered as grey pictures are; of one channel, as its copies."""
    net = create_model("resnet20", seed=0).eval()
    grey = torch.randn(2, 1, 8, 8)
    expected = net(grey.expand(-1, 3, -1, -1))
    save_network(net, tmp_path / "w.safetensors", model="resnet20")
    for channels in (1, 2, 6, 13):
        other = create_model(
            "resnet20", in_channels=channels, num_classes=10, weights=tmp_path / "w.safetensors"
        ).eval()
        if channels % 3 == 0 or channels == 1:
            answer = other(grey.expand(-1, channels, -1, -1))
            assert torch.allclose(answer, expected, atol=1e-5)
        assert other.conv1.weight.shape[1] == channels
    tensors = dict(net.state_dict())
    assert adapt_input_conv(net, tensors)["conv1.weight"] is tensors["conv1.weight"]


def test_a_transfer_study_pretrains_its_own_runs() -> None:
    recipe = load_recipe("transfer", ["study.seeds=[3]", "study.networks=[resnet20]"])
    source = build.open_split(recipe, "train")
    assert source.labels.bincount().tolist() == [10] * 5
    first, *others = EXPERIMENTS["transfer"].trials(recipe, recipe.study, source)
    assert first.recipe.data.classes == ("0", "1", "2", "3", "4")
    assert first.recipe.data.per_class is None
    assert [trial.initial_weights for trial in others] == ["", *[first.name] * 3]
    assert [trial.recipe.net.train for trial in others] == ["all", "head", 1, "all"]
    other = load_recipe("transfer", ["study.classes=[4,5]"])
    with pytest.raises(ValueError, match="'5' is among those of"):
        EXPERIMENTS["transfer"].trials(other, other.study, source)


@pytest.mark.slow
def test_a_transfer_study_runs_from_start_to_end(tmp_path: Path) -> None:
    overrides = ["steps=4", "study.epochs=1", "study.networks=[resnet20]", "study.seeds=[0,1]",
            "study.ways=[scratch,all]"]  # fmt: skip
    recipe = load_recipe("transfer", overrides)
    result = study(recipe, tmp_path / "out", jobs=1)
    names = [row["name"] for row in result["rows"]]
    assert names == ["resnet20 before", "resnet20 from scratch", "resnet20 all of it fine-tuned"]
    assert [row["images"] for row in result["rows"]][1:] == [50, 50]
    assert " to " in result["rows"][2]["gain"]
    assert "from scratch: all of it fine-tuned" in result["finding"]
    begun = (tmp_path / "out/runs/resnet20-all-of-it-fine-tuned-seed0/recipe.toml").read_text()
    assert "out/runs/resnet20-before-seed0" in begun
    assert study(recipe, tmp_path / "out") == result


def test_filters_of_grey_images_are_taken_for_colours() -> None:
    """An image with equal channels keeps its prediction."""
    grey = create_model("resnet20", in_channels=1, seed=0).eval()
    net = create_model("resnet20", seed=1).eval()
    net.load_state_dict(adapt_input_conv(net, grey.state_dict()))
    image = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(net(image.expand(-1, 3, -1, -1)), grey(image))


def test_missing_weights_are_named_with_their_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "digits", "net.weights=none", "--out", str(tmp_path / "x")]
    assert cli.run(arguments) == 2
    assert '[net] weights = "none": no such file or run; leave it' in capsys.readouterr().err
