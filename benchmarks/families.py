"""What a scan finds in models that it was not developed on.

Random Llama, GPT-2, Mixtral and BERT networks, and a pretrained encoder: the 12-layer BERT that the PyPI package rxnfp
0.1.0 (MIT licence) carries, trained on chemical reactions (Schwaller et al. 2021), which `pip download` fetches. Each
goes through a sample of a shipped fault campaign; journals and results are kept under `--out`, and a run that ended
early goes on there. Exit code 1 when in a family more than 1 % of the faults have another layer named first, or a clean
scan an alarm.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from hal.bundled import model_dir
from hal.noise import stream_key, uniform

LEAST = 0.99
LAYERS, HIDDEN, HEADS = 6, 128, 4
WEIGHTS = 0.1  # standard deviation: with the default 0.02 the layers of a random network hardly change their stream

PACKAGE = "rxnfp==0.1.0"
INSIDE = "rxnfp/models/transformers/bert_ft/"
# Atoms in brackets, atoms of two letters, the arrow of a reaction, then single characters.
PIECE = r"\[[^\]]+\]|Br|Cl|>>|."
_PARTS = (
    "CC(=O)O",
    "c1ccccc1Br",
    "OB(O)c1ccccc1",
    "CCN(CC)CC",
    "O=C(Cl)c1ccc(F)cc1",
    "NCCO",
    "C1CCNCC1",
    "[Na+].[OH-]",
    "CC(C)(C)OC(=O)N",
    "COc1ccc(C=O)cc1",
    "N#Cc1ccncc1",
    "O=S(=O)(Cl)C",
    "CI",
    "C[Si](C)(C)C",
    "Clc1ncccn1",
    "O=[N+]([O-])c1ccccc1",
)


def main() -> int:
    options = _parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    poor = []
    print(f"{'family':<10} {'layer first':>12} {'operator':>10} {'kind':>10} {'alarms':>8}", flush=True)
    for family in options.families:
        rates = _campaign(family, options)
        cells = [
            f"{rates[name]['count']}/{rates[name]['of']}" for name in ("layer", "operator", "kind", "false_alarms")
        ]
        print(f"{family:<10} {cells[0]:>12} {cells[1]:>10} {cells[2]:>10} {cells[3]:>8}", flush=True)
        if rates["layer"]["count"] < LEAST * rates["layer"]["of"] or rates["false_alarms"]["count"]:
            poor.append(family)
    return 1 if poor else 0


def _campaign(family: str, options: argparse.Namespace) -> dict[str, Any]:
    folder = options.out / family
    model = options.out / "models" / family
    folder.mkdir(exist_ok=True)
    if not (model / "config.json").exists():
        FAMILIES[family](model)
    file = _campaign_file(options.campaign, folder, model)
    command = [sys.executable, "-m", "srdd", "campaign", str(file), "--model", str(model), "--out", str(folder)]
    command += ["--backend", "cpu-reference", "--limit", str(options.limit), "--quiet"]
    command += ["--jobs", str(options.jobs)] if options.jobs else []
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if ended.returncode not in (0, 1):
        raise SystemExit(f"the campaign of {family} ended with exit code {ended.returncode}")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    rates: dict[str, Any] = result["rates"]
    return rates


def _campaign_file(name: str, folder: Path, model: Path) -> Path:
    """The shipped campaign, on the prompts that came with the model if there are any."""
    shipped = resources.files("srdd.campaign").joinpath("shipped", f"{name}.json").read_text(encoding="utf-8")
    document = json.loads(shipped)
    prompts = model / "prompts.txt"
    if prompts.exists():
        document["prompts"] = str(prompts.resolve())
    file = folder / f"{name}.json"
    file.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return file


def _llama(directory: Path) -> None:
    config = transformers.LlamaConfig(**_decoder())
    _save(transformers.LlamaForCausalLM(config), directory)


def _mixtral(directory: Path) -> None:
    config = transformers.MixtralConfig(**_decoder(), num_local_experts=4)
    _save(transformers.MixtralForCausalLM(config), directory)


def _gpt2(directory: Path) -> None:
    config = transformers.GPT2Config(
        n_layer=LAYERS,
        n_embd=HIDDEN,
        n_head=HEADS,
        n_positions=256,
        vocab_size=_vocabulary(),
        initializer_range=WEIGHTS,
    )
    _save(transformers.GPT2LMHeadModel(config), directory)


def _bert(directory: Path) -> None:
    config = transformers.BertConfig(**_network())
    _save(transformers.BertModel(config), directory)


def _network() -> dict[str, Any]:
    return {
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 256,
        "vocab_size": _vocabulary(),
        "initializer_range": WEIGHTS,
    }


def _decoder() -> dict[str, Any]:
    return {**_network(), "num_key_value_heads": HEADS // 2}


def _vocabulary() -> int:
    config = json.loads((model_dir() / "config.json").read_text(encoding="utf-8"))
    size: int = config["vocab_size"]
    return size


def _save(model: PreTrainedModel, directory: Path) -> None:
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(model_dir()).save_pretrained(directory)


def _reactions(directory: Path) -> None:
    """The encoder of rxnfp as a safetensors checkpoint, its tokens, and made-up reactions for prompts."""
    source = directory.parent / "rxnfp"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(source), PACKAGE]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(source.glob("*.whl"))) as wheel:
        for name in ("config.json", "pytorch_model.bin", "vocab.txt"):
            (source / name).write_bytes(wheel.read(INSIDE + name))
    config = transformers.BertConfig.from_pretrained(source)
    model = transformers.BertModel(config)
    weights = torch.load(source / "pytorch_model.bin", weights_only=True)
    missing, _ = model.load_state_dict(
        {name.removeprefix("bert."): value for name, value in weights.items()}, strict=False
    )
    if missing:
        raise SystemExit(f"the encoder of {PACKAGE} lacks {missing[0]} and {len(missing) - 1} further weights")
    model.save_pretrained(directory)
    _tokens(source / "vocab.txt").save_pretrained(directory)
    (directory / "prompts.txt").write_text("\n".join(_reaction(number) for number in range(400)), encoding="utf-8")


def _tokens(vocabulary: Path) -> PreTrainedTokenizerFast:
    words = vocabulary.read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _reaction(number: int) -> str:
    draws = uniform((4,), seed=0, stream=stream_key("benchmarks.families", number)).tolist()
    first, second, third, product = (_PARTS[int(draw * len(_PARTS))] for draw in draws)
    return f"{first}.{second}.{third}>>{product}"


FAMILIES: dict[str, Callable[[Path], None]] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "mixtral": _mixtral,
    "bert": _bert,
    "reactions": _reactions,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for models, journals and results")
    parser.add_argument("--campaign", default="core", choices=("quick", "core", "standard"))
    parser.add_argument("--limit", type=int, default=120, help="cases for each family")
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--jobs", type=int, help="processes; as many as processors and memory allow if left out")
    return parser


if __name__ == "__main__":
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sys.exit(main())
