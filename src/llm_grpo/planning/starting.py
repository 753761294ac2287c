"""`lora.from`: the adapter a run goes on from, found and compared with the config before a model is loaded."""

from __future__ import annotations

from pathlib import Path

from llm_grpo import runs
from llm_grpo.config.schema import Config
from llm_grpo.errors import UserError, first_line, hub_errors


def starting(config: Config, *, resumed: bool = False) -> tuple[Config, Path | None]:
    """The config with the adapter's targets where it names none, and the adapter's folder; None where there is none.

    resumed: a checkpoint holds what was learned from it, so it may be gone by now, unless it is what the KL is against.
    Raises UserError with all that does not fit.
    """
    if config.lora is None or config.lora.from_ is None:
        return config, None
    is_reference = config.grpo["beta"] > 0 and not config.sft
    if resumed and config.lora.target_modules and not is_reference:
        return config, None
    from llm_grpo.export.adapter import read_adapter

    lora, folder = config.lora, _folder(config.lora.from_)
    adapter = read_adapter(folder)
    if adapter.is_whole:
        raise UserError(f"lora.from: {folder} is a whole model, not an adapter. Set model.name={folder} in its place.")
    ranks = {pair.a.shape[0] for pair in adapter.pairs.values()}
    alphas = {round(pair.scale * pair.a.shape[0], 6) for pair in adapter.pairs.values()}
    targets = {module.rpartition(".")[2] for module in adapter.pairs}
    faults = [f"it holds whole tensors besides its LoRA ({min(adapter.replaced)})"] if adapter.replaced else []
    if ranks != {lora.r}:
        faults.append(f"its rank is {_words(ranks)}, lora.r is {lora.r}")
    if alphas != {lora.alpha}:
        faults.append(f"its alpha is {_words(alphas)}, lora.alpha is {lora.alpha:g}")
    if lora.target_modules and targets != set(lora.target_modules):
        faults.append(f"its targets are {_words(targets)}, lora.target_modules {_words(lora.target_modules)}")
    if not _same(adapter.base, config.model.name):
        faults.append(f"its base is {adapter.base or 'not named'}, model.name is {config.model.name}")
    if faults:
        raise UserError(f"lora.from: {folder} does not fit: {'; '.join(faults)}. Set these as the adapter has them.")
    lora = lora.model_copy(update={"target_modules": lora.target_modules or sorted(targets)})
    return config.model_copy(update={"lora": lora}), folder


def _words(values: set | list) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, int | float) else value for value in sorted(values))


def _same(base: str, name: str) -> bool:
    return base == name or bool(base) and Path(base).exists() and Path(base).resolve() == Path(name).resolve()


def _folder(place: str) -> Path:
    """A run gives the adapter that it chose; a name of the Hub is fetched or taken from the cache."""
    folder = Path(place)
    if folder.is_dir():
        return runs.find(folder).chosen_weights() if (folder / "config.yaml").is_file() else folder
    if place.count("/") != 1 or place.startswith((".", "/")):
        raise UserError(f"lora.from: there is no folder {place}, and it is not a Hub name of the form owner/adapter.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, allow_patterns=["adapter_*"]))
    except hub_errors() as error:
        raise UserError(f"lora.from: {place} cannot be had from the Hub: {first_line(error)}") from error
