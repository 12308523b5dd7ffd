"""Is everything in the bundle: the GPU backend, readable sources, versions, texts and tokenizers?"""

from __future__ import annotations

import importlib.metadata
import inspect
import sys
from importlib import import_module

from sigma.core import paths
from sigma_app.selftest.gate import Gate, NotHereError, bundle_folder, expect, module_source, only_frozen

MODULES = (
    *("torch", "transformers", "tokenizers", "tiktoken", "safetensors", "numpy", "rich", "psutil", "platformdirs"),
    *("py3langid", "pyarrow.parquet", "fastwarc.warc", "warcio", "zstandard", "truststore"),
)
READABLE = ("sigma.build", "sigma_app.__main__", "sigma_kernels.rms_norm.kernel", "triton", "triton.runtime.jit")
# Built for other purposes, or not used by us: each would be megabytes that nobody asked for.
UNWANTED = (
    *("pip", "pytest", "hypothesis", "PyInstaller", "tkinter", "triton/backends/amd", "triton/profiler"),
    *("transformers/models/bert", "transformers/models/llama"),
)


def libraries() -> str:
    """Every library of the program can be imported."""
    for name in MODULES:
        import_module(name)
    torch = import_module("torch")
    return f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, Python {sys.version.split()[0]}"


def backends() -> str:
    """Triton has the NVIDIA backend; in the executable no other."""
    found = sorted(import_module("triton.backends").backends)
    expect("nvidia" in found and (not paths.is_frozen() or found == ["nvidia"]), f"triton backends are {found}")
    return ", ".join(found)


def sources() -> str:
    """Our packages and triton run from `.py` files; classes of torch and transformers show their source."""
    for name in READABLE:
        module = import_module(name)
        module_source(module)
        expect(inspect.getsource(module), f"{name} is empty")
    shown = (import_module("torch").nn.Linear, import_module("transformers").PreTrainedModel)
    expect(all(inspect.getsource(one).startswith("class") for one in shown), "another class's source")
    return f"{len(READABLE)} modules and {len(shown)} classes"


def versions() -> str:
    """Libraries that ask for the versions of others find them."""
    names = ("torch", "triton-windows" if sys.platform == "win32" else "triton", "transformers", "tokenizers", "numpy")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def data() -> str:
    """The texts and tokenizers are there and are the recorded ones; the fast encoder is used."""
    from sigma.data.tokenizer import load_tokenizer
    from sigma_app.doctor import corpus

    finding = corpus()
    expect(finding.status == "OK", finding.text)
    encoder = load_tokenizer("bpe8k").encoder
    expect(encoder == "tiktoken", f"texts are encoded by {encoder}")
    return finding.text


def languages() -> str:
    """The model that tells languages apart is there."""
    from sigma.data.quality.language import known_languages, language_of

    found = language_of("Le chat est assis sur le tapis et regarde par la fenêtre, parce qu'il pleut dehors.")
    expect(found == "fr", f"a French sentence is called {found}")
    return f"{len(known_languages())} languages"


def nothing_else() -> str:
    """What is not used is not there."""
    only_frozen()
    found = [name for name in UNWANTED if (bundle_folder() / name).exists()]
    expect(not found, f"the bundle has {', '.join(found)}")
    return f"none of {len(UNWANTED)} unused parts"


def args_file() -> str:
    """The args file lies beside the executable and is read without an error."""
    only_frozen()
    from sigma.config.explain import ARGS_FILE_NAME
    from sigma.config.parse import parse

    folder = paths.program_dir()
    if folder is None or not (folder / ARGS_FILE_NAME).is_file():
        raise NotHereError(f"no {ARGS_FILE_NAME} in {folder}; the first start writes one")
    parse([], args_file=folder / ARGS_FILE_NAME, data_dir=folder)
    return str(folder / ARGS_FILE_NAME)


GATES = [
    Gate("libraries", libraries),
    Gate("triton backends", backends),
    Gate("sources", sources),
    Gate("versions", versions),
    Gate("texts and tokenizers", data),
    Gate("languages", languages),
    Gate("nothing unused", nothing_else),
    Gate("args file", args_file),
]
