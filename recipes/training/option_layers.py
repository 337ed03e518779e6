"""fairseq-train's options for one training, from four layers: defaults, model file, its part for the corpus, user."""

from collections.abc import Sequence

from recipes.config.models import ModelFile
from recipes.training import devices, fairseq_options
from recipes.training.fairseq_options import Options

# Every training has these unless the model file or the command line sets others.
DEFAULTS: Options = {
    "task": "translation",
    "max-tokens": 4096,
    "keep-last-epochs": 10,
    "log-interval": 100,
    "skip-invalid-size-inputs-valid-test": True,
}

# One of them at a time: fairseq would prefer --fp16 to a file's bf16, without the loss scaling that it needs.
PRECISIONS = ("fp16", "bf16", "amp", "memory-efficient-fp16", "memory-efficient-bf16")


def merged_options(model: ModelFile, corpus: str, extra: Sequence[str], *, device: str) -> Options:
    """The model file's options over the defaults, its part for `corpus` over those, the command line over all.

    A model file's bf16 is ignored, with a note, on a CPU where it would be slower than float32.

    Args:
        model: the model file.
        corpus: the name of the corpus.
        extra: the words after `--` on the command line.
        device: `cpu` or `gpu`.

    Raises:
        UserError: an option that the recipe sets itself, or words that are not options.
    """
    from_file = fairseq_options.with_dashes(model.options("train", corpus))
    fairseq_options.refuse_reserved(from_file, f"in {model.path}")
    from_user = fairseq_options.from_command_line(extra)
    fairseq_options.refuse_reserved(from_user, "after --")
    if device == "cpu" and from_file.get("bf16") and "bf16" not in from_user and not devices.cpu_computes_bf16():
        print("note: this CPU has no bfloat16 matrix products: training in float32 (-- --bf16 would insist)")
        del from_file["bf16"]
    for name, value in from_user.items():
        if from_file.get(name) is True and str(value).lower() == "false":
            from_user[name] = False  # a flag of the file, switched off
    if any(from_user.get(name) for name in PRECISIONS):
        from_file = {name: value for name, value in from_file.items() if name not in PRECISIONS}
    merged = DEFAULTS | from_file | from_user
    if "batch-size" in from_user and "max-tokens" not in from_user:
        merged["max-tokens"] = None
    return {name: value for name, value in merged.items() if value is not None and value is not False}
