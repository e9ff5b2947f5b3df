"""Recipes: what is read, what is refused and with which words, and what is written again."""

import dataclasses
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plusx.grammar.spec import Net
from plusx.overrides import split_override
from plusx.recipe import (
    Recipe,
    differences,
    load_recipe,
    parse_recipe,
    to_dict,
    to_toml,
)
from plusx.shipped import shipped_recipes


GOOD = """\
seed = 3
epochs = 4
batch_size = 32

[net]
base = "resnet20"
drop_path = 0.1

[task]
kind = "classify"
label_smoothing = 0.1

[data]
kind = "cifar10"
augment = "pad4 crop flip"
mix = { kind = "mixup", alpha = 0.2 }

[optim]
kind = "sgd"
lr = 0.1
momentum = 0.9
weight_decay = 1e-4

[schedule]
kind = "steps"
milestones = [0.5, 0.75]

[evaluate]
patience = 5
"""


def test_a_recipe_is_read_with_its_defaults() -> None:
    recipe = parse_recipe(GOOD)
    assert (recipe.seed, recipe.epochs, recipe.steps) == (3, 4, None)
    assert recipe.net.base == "resnet20"
    assert recipe.net.num_classes is None
    assert recipe.data.mix.alpha == 0.2
    assert recipe.schedule.milestones == (0.5, 0.75)
    assert recipe.checkpoint.keep == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 4


def test_the_expanded_recipe_has_every_field_and_round_trips() -> None:
    recipe = parse_recipe(GOOD)
    text = to_toml(recipe)
    assert parse_recipe(text) == recipe
    assert "nesterov = false" in text
    assert "every_seconds" in text


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_read_and_return(name: str) -> None:
    recipe = load_recipe(name)
    assert parse_recipe(to_toml(recipe)) == recipe


def test_a_recipe_can_contain_a_complete_spec() -> None:
    text = GOOD.replace(
        'base = "resnet20"\ndrop_path = 0.1\n',
        'stem = "conv3 norm act"\nstem_width = 8\nnum_classes = 10\nsize = 32\n'
        'stages = [{ block = "conv3s norm act conv3 norm + act", depth = 1, width = 8 }]\n',
    )
    recipe = parse_recipe(text)
    assert isinstance(recipe.net, Net)
    assert recipe.net.stages[0].width == 8
    assert parse_recipe(to_toml(recipe)) == recipe
    with pytest.raises(ValueError, match=r"\[net\].*stage 1 has no field 'widht'"):
        parse_recipe(text.replace("width = 8 }", "widht = 8 }"))


# What is typed, where (a line of GOOD is replaced), and what the one line of the error must say.
TYPOS = [
    ("lr = 0.1", "learing_rate = 0.1", "20", ["optim", "learing_rate", "optim.lr"]),
    ("lr = 0.1", "learning_rate = 0.1", "20", ["optim", "learning_rate", "optim.lr"]),
    ("epochs = 4", "num-epochs = 4", "2", ["num-epochs", "did you mean epochs"]),
    ("epochs = 4", "epoch = 4", "2", ["epoch", "did you mean epochs"]),
    ("epochs = 4", "lr = 4", "2", ["lr", "did you mean optim.lr"]),
    ("momentum = 0.9", "batch_size = 3", "21", ["[optim] batch_size", "mean batch_size, outside"]),
    ("momentum = 0.9", "momentun = 0.9", "21", ["[optim] momentun", "did you mean optim.momentum"]),
    ("lr = 0.1", 'lr = "1e-3"', "20", ["[optim] lr", "must be a number", "without quotes"]),
    ("lr = 0.1", "lr = 0,1", "20", ["not TOML"]),
    ("lr = 0.1", "lr = -0.1", "20", ["[optim] lr", "above 0"]),
    ("lr = 0.1", "lr = nan", "20", ["[optim] lr", "finite"]),
    ("lr = 0.1", "lr = true", "20", ["[optim] lr", "must be a number"]),
    ("lr = 0.1", "nesterov = yes", "20", ["not TOML", "true or false"]),
    ("lr = 0.1", 'lr = 0.1\nnesterov = "yes"', "21", ["[optim] nesterov", "true or false"]),
    ("lr = 0.1", "lr = 0.1\nlr = 0.2", "21", ["not TOML"]),
    ("seed = 3", "seed = 3.5", "1", ["seed", "whole number"]),
    ("seed = 3", "seed = -1", "1", ["seed", "at least 0"]),
    ("seed = 3", 'seed = "3"', "1", ["seed", "whole number", "without quotes"]),
    ("batch_size = 32", "batch_size = 0", "3", ["batch_size", "at least 1"]),
    ("epochs = 4", "epochs = 4\nsteps = 5", "", ["epochs", "steps", "one"]),
    ("epochs = 4", "", "", ["epochs", "steps", "one"]),
    ('kind = "cifar10"', 'kind = "cifar"', "14", ["[data] kind", "did you mean cifar10"]),
    ('kind = "cifar10"', "", "13", ["[data] needs kind", "digits"]),
    (
        'kind = "cifar10"',
        'kind = "cifar10"\npath = "x"',
        "15",
        ["path", "it belongs to kind = folder, csv"],
    ),
    ('kind = "sgd"', 'kind = "adam"', "19", ["[optim] kind", "did you mean adamw"]),
    ('kind = "steps"', 'kind = "cosine"', "26", ["[schedule] milestones", "kind = steps"]),
    ("milestones = [0.5, 0.75]", "milestones = 0.5", "26", ["[schedule] milestones", "list"]),
    (
        "milestones = [0.5, 0.75]",
        "milestones = [0.5, 1.5]",
        "26",
        ["[schedule] milestones, item 2", "fraction"],
    ),
    ("milestones = [0.5, 0.75]", "", "24", ["[schedule] milestones is missing"]),
    ("[schedule]", "[shedule]", "24", ["shedule", "did you mean schedule"]),
    ("[schedule]", "[schedule", "24", ["not TOML"]),
    ("[schedule]", "schedule:", "24", ["not TOML"]),
    ('base = "resnet20"', "base = resnet20", "6", ["not TOML", "double quotes"]),
    ("drop_path = 0.1", "drop_path = 1", "7", ["[net] drop_path", "below 1"]),
    ("drop_path = 0.1", "drop_paths = 0.1", "7", ["did you mean net.drop_path"]),
    ("patience = 5", 'keep = "bets"', "29", ["[evaluate] keep", "did you mean best"]),
    ("seed = 3", "\ufeffseed = 3", "1", ["byte order mark"]),
    ("seed = 3", "seed = " + "[" * 5000, "", ["not TOML"]),
    ("seed = 3", "a" + ".a" * 50 + " = 1", "", ["20 deep"]),
]


@pytest.mark.parametrize(("line", "typo", "number", "messages"), TYPOS)
def test_a_typo_is_named_with_its_line(
    line: str, typo: str, number: str, messages: list[str]
) -> None:
    assert line in GOOD
    with pytest.raises(ValueError) as error:
        parse_recipe(GOOD.replace(line, typo, 1), where="my.toml")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"my.toml:{number}: " if number else "my.toml")
    for words in messages:
        assert words in message, message


def test_there_are_more_than_thirty_typos() -> None:
    assert len(TYPOS) >= 30


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=0.1", "did you mean optim.lr"),
        ("optim.lr=fast", "must be a number"),
        ("optim.momentun=0.9", "did you mean optim.momentum"),
        ("net.basee=resnet20", "did you mean net.base"),
        ("seed", "not key=value"),
        ("=3", "not key=value"),
        ("seed.x=3", "one value, not a table"),
        ("data=digits", "data is a table"),
        ("evaluate.keep=bets", "did you mean best"),
    ],
)
def test_a_wrong_override_is_quoted(override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_recipe(GOOD, [override])
    assert override in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.spacing=[2.0,1.0]", r"[data] spacing = [2.0, 1.0], item 3 is missing"),
        ("data.patch=[8,8,8,8]", r"[data] patch = [8, 8, 8, 8]: must have at most 3 items"),
        ("data.classes=[liver]", r'[data] classes = ["liver"]: must have at least 2 items'),
    ],
)
def test_a_list_of_another_length_is_named(override: str, message: str) -> None:
    text = GOOD[: GOOD.index("[data]")] + GOOD[GOOD.index("[optim]") :]
    volumes = ["data.kind=volumes", "data.path=x", "data.range=[0,9]", "data.classes=[a,b]"]
    with pytest.raises(ValueError) as error:
        parse_recipe(text, [*volumes, override])
    assert message in str(error.value)


def test_overrides_change_fields_and_nothing_else() -> None:
    before = parse_recipe(GOOD)
    after = parse_recipe(GOOD, ["seed=7", "optim.lr=0.05", "net.base=plain20"])
    assert differences(before, after) == {
        "seed": "3 -> 7",
        "net.base": '"resnet20" -> "plain20"',
        "optim.lr": "0.1 -> 0.05",
    }


def test_another_kind_keeps_the_fields_that_it_knows() -> None:
    recipe = parse_recipe(GOOD, ["data.kind=folder", "data.path=/photos", "optim.kind=adamw"])
    assert recipe.data.path == "/photos"
    assert recipe.data.augment == "pad4 crop flip"
    assert recipe.optim.lr == 0.1
    assert not hasattr(recipe.optim, "momentum")


def test_a_missing_kind_is_the_default() -> None:
    text = GOOD.replace('[schedule]\nkind = "steps"\nmilestones = [0.5, 0.75]\n', "")
    recipe = parse_recipe(text, ["schedule.warmup_until=0.8"])
    assert (recipe.schedule.kind, recipe.schedule.warmup_until) == ("constant", 0.8)
    with pytest.raises(ValueError, match="alpha is not a key here; it belongs to kind = mixup"):
        parse_recipe(text.replace('kind = "mixup", ', ""))


def test_steps_replace_epochs() -> None:
    recipe = parse_recipe(GOOD, ["steps=30"])
    assert (recipe.epochs, recipe.steps) == (None, 30)
    with pytest.raises(ValueError, match="give one"):
        parse_recipe(GOOD, ["steps=30", "epochs=2"])


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch canary']",
        "$(touch canary)",
        "${oc.env:HOME}",
        "__import__('os').system('touch canary')",
        "{_target_ = 'os.system'}",
    ],
)
def test_text_with_code_is_not_executed(
    value: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    try:
        recipe = parse_recipe(GOOD, ["data.kind=folder", f"data.path={value}"])
    except ValueError:
        pass
    else:
        assert recipe.data.path == value
    assert os.listdir(".") == []


def test_names_and_paths(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open("mine.toml", "w") as file:
        file.write(GOOD)
    assert load_recipe("mine.toml") == parse_recipe(GOOD)
    with pytest.raises(ValueError, match="did you mean digits"):
        load_recipe("digitss")
    with pytest.raises(ValueError, match="is a folder"):
        load_recipe(".")
    os.mkfifo("pipe.toml")
    with pytest.raises(ValueError, match="regular file"):
        load_recipe("pipe.toml")
    with open("latin.toml", "wb") as file:
        file.write(b'seed = "\xff"')
    with pytest.raises(ValueError, match="UTF-8"):
        load_recipe("latin.toml")


def test_a_value_is_toml_or_text() -> None:
    assert split_override("a.b=1e-3") == (("a", "b"), 1e-3)
    assert split_override("a=true") == (("a",), True)
    assert split_override("a=x=y") == (("a",), "x=y")
    assert split_override("a=1\nb=2") == (("a",), "1\nb=2")
    assert split_override("a=[plain20, resnet20]") == (("a",), ["plain20", "resnet20"])


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["seed", "optim.lr", "net.base", "data.augment", "evaluate", "a.b", ""]
            ),
            st.text(max_size=20),
        ),
        max_size=4,
    )
)
def test_any_override_is_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    try:
        recipe = parse_recipe(GOOD, [f"{key}={value}" for key, value in pairs])
    except ValueError:
        return
    else:
        assert isinstance(recipe, Recipe)
        assert parse_recipe(to_toml(recipe)) == recipe
        assert to_dict(recipe)["batch_size"] == 32


def test_s11_a_value_of_a_recipe_can_be_unset() -> None:
    text = GOOD.replace("[data]", "[data]\nvalidation = 0.25")
    assert parse_recipe(text, where="a.toml").data.validation == 0.25
    assert parse_recipe(text, ["data.validation=default"], where="a.toml").data.validation is None
    with pytest.raises(ValueError, match="kind"):
        parse_recipe(text, ["optim.kind=default"], where="a.toml")
    quoted = parse_recipe(text, ["net.weights='default'"], where="a.toml")
    assert quoted.net.weights == "default"
