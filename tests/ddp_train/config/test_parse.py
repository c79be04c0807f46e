"""The configuration: layers, spellings, and one clear line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddp_core.errors import UserError
from ddp_train.config.options import Config, declared, to_dict
from ddp_train.config.other_names import MEANT
from ddp_train.config.parse import dump, parse, presets, with_values
from ddp_train.config.validation import check, check_paths, resume_file


def write(folder: Path, text: str | bytes, name: str = "options.yaml") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_the_command_line_goes_over_yaml_wherever_it_stands(tmp_path: Path) -> None:
    file = write(tmp_path, "lr: 1e-3\nbatch_size: 64\n")
    before = parse(["--lr", "0.5", "--config", file])
    after = parse(["--config", file, "--lr", "0.5"])
    assert before == after
    assert (before.optim.lr, before.data.batch_size) == (0.5, 64)
    assert before.given == {"lr", "batch_size"}


def test_yaml_goes_over_the_preset(tmp_path: Path) -> None:
    file = write(tmp_path, "epochs: 3\n")
    parsed = parse(["--preset", "quick", "--config", file])
    assert (parsed.run.epochs, parsed.data.batch_size) == (3, 512)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["--batch_size", "64"], ["--batch-size", "64"]),
        (["--batch_size=64"], ["--batch-size", "64"]),
        (["--max-epochs", "3"], ["--epochs", "3"]),
        (["--no-mixed-precision"], ["--amp", "off"]),
        (["--no_tensorboard"], ["--no-tensorboard"]),
    ],
)
def test_two_spellings_of_one_option(one: list[str], other: list[str]) -> None:
    assert parse(one) == parse(other)


def test_values_keep_their_underscores() -> None:
    assert parse(["--out-dir", "my_run", "--data-dir=--odd_name"]).run.out_dir == "my_run"


def test_a_dump_is_read_back_as_it_was(tmp_path: Path) -> None:
    first = parse(["--lr", "1e-3", "--compile", "--augment", "heavy", "--seed", "7"])
    again = parse(["--config", write(tmp_path, dump(first))])
    assert to_dict(again) == to_dict(first)


def test_every_preset_parses() -> None:
    assert {"quick", "balanced"} <= set(presets())
    for name in presets():
        assert parse(["--preset", name]).given


# What is typed, and the words that the one line must hold.
MISTAKES = [
    (["--lr", "abc"], ["--lr", "a number", "abc"]),
    (["--lr", "nan"], ["--lr", "nan"]),
    (["--lr", "1e308"], ["--lr", "at most 10000"]),
    (["--lr", "0"], ["--lr", "above 0"]),
    (["--lr"], ["--lr", "expected one argument"]),
    (["--batch-size", "1.5"], ["--batch-size", "a whole number", "1.5"]),
    (["--batch-size", "0"], ["--batch-size", "at least 1"]),
    (["--epochs", "9223372036854775808"], ["--epochs", "at most"]),
    (["--optimizer", "sdg"], ["--optimizer", "sgd, adam", "sdg"]),
    (["--epoch", "3"], ["--epoch", "did you mean --epochs"]),
    (["--nonsense"], ["unknown option --nonsense"]),
    (["stray"], ["stray", "not an option"]),
    (["--preset", "quik"], ["--preset quik", "did you mean quick"]),
    (["--out-dir", ""], ["--out-dir", "non-empty"]),
    (["--batch-size", "8", "--batch-size-per-rank", "4"], ["--batch-size", "--batch-size-per-rank"]),
    (["--batch-size", "8", "--accumulate", "9"], ["--accumulate"]),
    (["--dataset", "digits", "--image-size", "64"], ["--image-size"]),
    (["--device", "cpu", "--amp", "fp16"], ["--amp fp16", "GPU"]),
    (["--dataset", "digits", "--flip", "alternating"], ["--flip", "digit"]),
    (["--augment-policy", "autoaugment", "--randaugment-ops", "3"], ["--randaugment-ops", "--augment-policy"]),
    (["--augment-policy", "mine"], ["--augment-policy", "trivialaugment", "mine"]),
    (["--progressive-resize-end", "24"], ["--progressive-resize-end needs --progressive-resize"]),
    (["--progressive-resize", "24", "--progressive-resize-end", "16"], ["--progressive-resize", "grow"]),
    (["--mixup", "-1"], ["--mixup", "at least 0"]),
    (["--cutout", "8", "--erasing", "0.5"], ["--cutout with --erasing: each erases a part of the image"]),
    (["--grayscale", "1.5"], ["--grayscale", "at most 1", "1.5"]),
    (["--resume", "no/such/run"], ["--resume no/such/run"]),
    (["--config", "no-such.yaml"], ["--config no-such.yaml", "No such file"]),
    (["--config", "."], ["--config .", "directory"]),
]


@pytest.mark.parametrize(("argv", "words"), MISTAKES, ids=lambda value: " ".join(value))
def test_a_mistake_is_one_line_that_names_it(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(argv)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("batch_size: many\n", ["batch_size", "a whole number", "many"]),
        ("batchsize: 3\n", ["unknown key 'batchsize'", "did you mean batch_size"]),
        ("lr: [\n", ["not YAML"]),
        (b"\x00\xff", ["not YAML"]),
        ("- a\n- b\n", ["expected lines"]),
        ("3: 4\n", ["expected lines"]),
        ("lr: -1\n", ["options.yaml: lr takes", "above 0", "-1"]),
        ("compile: perhaps\n", ["compile", "true or false"]),
        ("one: 1\nbatchsize: 2\nlr: 1\nthree: 3\n", ["keys 'one'", "'batchsize', did you mean batch_size", "'three'"]),
        ("seed: 010\n", ["seed: 010 is 8 in YAML 1.1"]),
        ("epochs: 1:30\n", ["epochs: 1:30 is 90 in YAML 1.1"]),
        ("lr: +01:30.5\n", ["lr: +01:30.5 is 90.5 in YAML 1.1"]),
        ("amp: off\n", ["amp takes", "not False; put it in quotes"]),
    ],
)
def test_a_mistake_in_yaml_names_the_key(tmp_path: Path, content: str | bytes, words: list[str]) -> None:
    file = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        parse(["--config", file])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_an_empty_yaml_file_changes_nothing(tmp_path: Path) -> None:
    assert parse(["--config", write(tmp_path, "# nothing\n")]) == parse([])


def test_a_named_data_folder_must_exist(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for extra in ([], ["--dataset", "folder"]):
        with pytest.raises(UserError, match=r"--data-dir .*does not exist"):
            check_paths(parse(["--data-dir", missing, *extra]))
    check_paths(parse(["--data-dir", missing, "--dataset", "digits", "--out-dir", str(tmp_path)]))


def test_the_run_folder_must_be_one(tmp_path: Path) -> None:
    file = write(tmp_path, "", "file")
    for create in (False, True):
        with pytest.raises(UserError, match=r"--out-dir .*cannot be written"):
            check_paths(parse(["--out-dir", f"{file}/run"]), create=create)
    wanted = parse(["--out-dir", str(tmp_path / "a" / "b")])
    check_paths(wanted)
    assert not (tmp_path / "a").exists()
    check_paths(wanted, create=True)
    assert (tmp_path / "a" / "b").is_dir()


def test_a_resumed_run_keeps_its_options_and_folder(tmp_path: Path) -> None:
    write(tmp_path, "epochs: 7\nlr: 0.25\nout_dir: elsewhere\n", "config.yaml")
    write(tmp_path, "", "checkpoint-latest.pt")
    resumed = parse(["--resume", str(tmp_path), "--lr", "0.5"])
    assert (resumed.run.epochs, resumed.optim.lr, resumed.run.out_dir) == (7, 0.5, str(tmp_path))
    assert resume_file(resumed) == tmp_path / "checkpoint-latest.pt"


def test_what_was_found_with_an_old_option_in_view_is_found_anew(tmp_path: Path) -> None:
    write(tmp_path, "optimizer: sgd\nlr: 0.05\nlr_scaling: sqrt\nbatch_size: 128\n", "config.yaml")
    write(tmp_path, "", "checkpoint-latest.pt")
    assert parse(["--resume", str(tmp_path), "--lr", "0.5"]).optim.lr_scaling is None
    assert parse(["--resume", str(tmp_path), "--optimizer", "adamw"]).optim.lr is None
    per_rank = parse(["--resume", str(tmp_path), "--batch-size-per-rank", "32"])
    assert per_rank.data.batch_size is None
    assert parse(["--resume", str(tmp_path), "--batch-size", "64"]).data.batch_size == 64


def test_resume_auto_starts_afresh_where_there_is_nothing(tmp_path: Path) -> None:
    for argv in (["--resume", "auto"], ["--resume", "auto", "--out-dir", str(tmp_path)]):
        assert resume_file(parse(argv)) is None


def test_help_shows_every_option_and_no_python_types(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in to_dict(Config()):
        assert "--" + name.replace("_", "-") in text
    assert "NoneType" not in text and "Optional" not in text and "%%" not in text


def test_an_option_without_what_it_needs_is_refused_only_where_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tta-below needs --tta flip or flip"):
        parse(["--tta-below", "0.5"])
    assert parse(["--model", "wideresnet", "--n-layers", "16"]).model.n_layers == 16
    write(tmp_path, "model: vit\nhidden_dim: 64\n", "config.yaml")
    write(tmp_path, "", "checkpoint-latest.pt")
    assert parse(["--resume", str(tmp_path), "--model", "small"]).model.hidden_dim == 64


# What is typed, and what each option has no effect without.
IDLE = [
    ("--patience 5", "--scheduler plateau"),
    ("--patience 10", "--scheduler plateau"),  # its default, typed
    ("--scheduler onecycle --eta-min 0.001", "--scheduler cosine or warm_restarts or linear"),
    ("--scheduler linear --step-size 4", "--scheduler step"),
    ("--gamma 0.5", "--scheduler step or multistep or exponential or plateau"),
    ("--milestones 0.5", "--scheduler multistep"),
    ("--t-0 4", "--scheduler warm_restarts"),
    ("--t-mult 1", "--scheduler warm_restarts"),
    ("--pct-start 0.2", "--scheduler onecycle or triangular"),
    ("--model small --width-mult 2", "--model power or residual"),
    ("--model resnet34 --width-mult 2", "--model power or residual"),
    ("--model mine:make --width-mult 2", "--model power or residual"),
    ("--optimizer adam --momentum 0.8", "--optimizer sgd, or --optimizer muon with --muon-rest sgd"),
    ("--optimizer muon --momentum 0.8", "--optimizer sgd, or --optimizer muon with --muon-rest sgd"),
    ("--beta1 0.8", "--optimizer adam or adamw"),
    ("--optimizer muon --muon-rest sgd --beta2 0.9", "--optimizer adam or adamw"),
    ("--eps 1e-6", "--optimizer adam or adamw"),
    ("--muon-momentum 0.8", "--optimizer muon"),
    ("--muon-normalize", "--optimizer muon"),
    ("--muon-iterations 3", "--optimizer muon"),
    ("--muon-rest sgd", "--optimizer muon"),
    ("--muon-rest-lr 0.1", "--optimizer muon"),
    ("--lookahead-alpha 0.8", "--lookahead"),
    ("--mixup-prob 0.5", "--mixup or --cutmix"),
    ("--min-delta 0.01", "--early-stopping"),
    ("--ema-warmup", "--ema"),
    ("--swa-lr 0.1", "--swa"),
    ("--swa-anneal 2", "--swa"),
    ("--amp bf16 --init-scale 1024", "--amp fp16"),
    ("--amp off --growth-factor 3", "--amp fp16"),
    ("--amp off --backoff-factor 0.3", "--amp fp16"),
    ("--amp off --growth-interval 3", "--amp fp16"),
    ("--pipeline resident --num-workers 2", "--pipeline loader"),
    ("--pipeline resident --prefetch-factor 2", "--pipeline loader"),
    ("--num-workers 0 --prefetch-factor 2", "--num-workers above 0"),
    ("--dataset digits --synthetic-samples 64", "--dataset synthetic"),
    ("--wandb-project mine", "--wandb"),
]


@pytest.mark.parametrize(("typed", "needed"), IDLE)
def test_an_option_without_effect_is_refused(typed: str, needed: str, tmp_path: Path) -> None:
    words = typed.split()
    option = next(word for word in reversed(words) if word.startswith("--"))
    with pytest.raises(UserError) as caught:
        parse(words)
    assert str(caught.value).startswith(f"{option} needs {needed}")
    if option != "--wandb-project" and typed != "--patience 10":
        pairs = zip(words, [*words[1:], "--end"], strict=True)
        values = {w[2:]: "true" if value.startswith("--") else value for w, value in pairs if w.startswith("--")}
        file = write(tmp_path, "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items()))
        with pytest.raises(UserError, match=option):
            parse(["--config", file])


@pytest.mark.parametrize(
    "words",
    [
        "--mixup 0.2 --mixup-prob 0.5",
        "--cutmix 1 --mixup-prob 0.5",
        "--optimizer muon --beta1 0.8",
        "--optimizer muon --muon-rest sgd --momentum 0.8",
        "--scheduler auto --t-0 4 --eta-min 0.001",
        "--num-workers 2 --prefetch-factor 2",
        "--cutout 0 --erasing 0.5",  # each may switch the other off
        "--cutout 8 --erasing 0",
        "--width-mult 2",
        "--scheduler onecycle --warmup-epochs 0",
        "--preset high-accuracy --scheduler onecycle",
        "--preset residual-93 --scheduler linear --optimizer sgd",
        "--preset rtx4090 --model small --pipeline resident",
        "--scheduler step --step-size 4 --scheduler linear",  # as over the options of a script
    ],
)
def test_what_has_an_effect_or_comes_from_a_preset_is_accepted(words: str) -> None:
    parse(words.split())


def test_a_files_options_give_way_to_what_the_command_line_replaces(tmp_path: Path) -> None:
    """The file may be the config.yaml of a run, with every option."""
    first = "--scheduler step --step-size 4 --optimizer adamw --beta1 0.8 --model power --width-mult 2"
    second = "--scheduler linear --optimizer sgd --model small"
    file = write(tmp_path, dump(parse(first.split())))
    assert parse(["--config", file]).schedule.step_size == 4
    parse(["--config", file, *second.split()])
    with pytest.raises(UserError, match="--beta1 needs"):
        parse(["--config", file, *second.split(), "--beta1", "0.7"])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("grad_clip", "clip_grad"),
        ("gradient_clip_val", "clip_grad"),
        ("use_mixed_precision", "amp"),
        ("gradient_accumulation_steps", "accumulate"),
        ("base_channels", "width_mult"),
        ("pretrained", "weights imagenet"),
        ("devices", "launch.py"),
        ("monitor", "val_split"),
    ],
)
def test_another_trainers_name_leads_to_ours(theirs: str, ours: str, tmp_path: Path) -> None:
    word = "--" + theirs.replace("_", "-")
    with pytest.raises(UserError) as caught:
        parse([word, "1"])
    words = str(caught.value).replace("--", "").replace("-", "_")
    assert words.startswith(f"unknown option {theirs}") and ours in words
    with pytest.raises(UserError) as caught:
        parse(["--config", write(tmp_path, f"{theirs}: 1\n")])
    words = str(caught.value).replace("-", "_")
    assert f"unknown key '{theirs}'" in words and ours.replace("weights ", "weights: ") in words


def test_every_name_of_another_trainer_leads_to_an_option() -> None:
    for theirs, ours in MEANT.items():
        assert theirs not in declared() and (ours.startswith(":") or ours.split()[0] in declared())


def test_a_rule_holds_for_what_the_machine_filled_in() -> None:
    typed = parse(["--crop-padding", "2", "--stochastic-depth", "0.1"])
    check(with_values(typed, {"augment": "balanced", "model": "resnet18"}))
    with pytest.raises(UserError, match="--crop-padding needs --augment balanced or heavy"):
        check(with_values(typed, {"augment": "none", "model": "resnet18"}))
    with pytest.raises(UserError, match="--stochastic-depth"):
        check(with_values(typed, {"augment": "balanced", "model": "small"}))


def test_a_file_of_an_earlier_release_still_loads(tmp_path: Path) -> None:
    """The sections of a file are comments; this one had another title."""
    text = "# Run\nepochs: 3\n\n# Looking inside and records\nexamine: false\ntta: none\nwandb_project: mine\n"
    assert parse(["--config", write(tmp_path, text)]).diagnostics.wandb_project == "mine"


def test_help_shows_defaults_and_ranges(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    assert "Momentum of sgd. [at least 0 and at most 0.9999; default 0.9]" in text
    assert "Compile the model with torch.compile. [default false]" in text


@pytest.mark.parametrize(
    ("argv", "word"),
    [(["--compile=true"], "takes no value"), (["-x"], "unknown option -x"), (["--no-lr"], "unknown option --no-lr")],
)
def test_words_that_are_no_options(argv: list[str], word: str) -> None:
    with pytest.raises(UserError, match=word):
        parse(argv)


def test_the_batch_of_the_command_line_replaces_that_of_a_file_in_the_other_form(tmp_path: Path) -> None:
    data = parse(["--preset", "high-accuracy", "--batch-size-per-rank", "64"]).data
    assert (data.batch_size, data.batch_size_per_rank) == (None, 64)
    (tmp_path / "mine.yaml").write_text("batch_size_per_rank: 8\n")
    data = parse(["--config", str(tmp_path / "mine.yaml"), "--batch-size", "32"]).data
    assert (data.batch_size, data.batch_size_per_rank) == (32, None)
