"""Records what the authors' own implementations do with `trajectory_inputs`.

    python -m venv authors && authors/bin/pip install numpy==2.4.6 torch==2.13.0
    git clone https://github.com/AGI-Arena/MARS
    git clone https://github.com/nikhilvyas/SOAP
    git clone https://github.com/LIONS-EPFL/scion
    authors/bin/python tests/record_trajectories.py

The clones are looked for in the working directory, at the commits in `SOURCES`. Each
case is one .npz in `trajectories`: the parameters after each of the 20 steps.

What is recorded is the algorithm in float64, not its rounding: casts to narrower floats
are turned off, and so is `torch.compile`. Numbers drawn at random are those of
`trajectory_inputs.stand_in`.
"""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import trajectory_inputs as inputs


FOLDER = Path(__file__).parent / "trajectories"
SOURCES = {
    "MARS/MARS/optimizers": "4831e28eba863a4e69d7e9474ff8e73bc1b410fe",
    "SOAP": "a1e553530fde97d0e6b307d7c82ac6d38b072340",
    "scion": "f58a393e010395a5913176be5673d8839caa6285",
}


def mars(params: Any) -> Any:
    return _load("MARS/MARS/optimizers", "mars").MARS(
        params, lr=0.1, lr_1d=0.1, weight_decay=0.2, weight_decay_1d=0.2, gamma=0.05
    )


def mars_1d(params: Any) -> Any:
    return _load("MARS/MARS/optimizers", "mars").MARS(
        params, lr=0.1, betas=(0.8, 0.9), eps=1e-3, optimize_1d=True
    )


def soap(params: Any) -> Any:
    return _load("SOAP", "soap").SOAP(
        params,
        lr=0.1,
        weight_decay=0.0,
        precondition_frequency=3,
        max_precond_dim=6,
    )


def soap_merged(params: Any) -> Any:
    return _load("SOAP", "soap").SOAP(
        params,
        lr=0.1,
        betas=(0.8, 0.9),
        shampoo_beta=0.7,
        eps=1e-3,
        weight_decay=0.0,
        precondition_frequency=4,
        max_precond_dim=6,
        merge_dims=True,
        normalize_grads=True,
        correct_bias=False,
    )


def scion(params: Any) -> Any:
    return _load("scion", "scion").Scion(params, lr=0.1, momentum=0.3, scale=2.0)


def scion_norms(params: Any) -> Any:
    norms = [
        ("BiasRMS", {}),
        ("BiasRMS", {}),
        ("Sign", {"normalized": False}),
        ("ColNorm", {"normalized": True, "transpose": True}),
        ("SpectralConv", {"steps": 3}),
    ]
    return _scion_groups(params, norms, unconstrained=True)


def scion_more_norms(params: Any) -> Any:
    norms = [
        ("BiasRMS", {}),
        ("BiasRMS", {}),
        ("RowNorm", {}),
        ("Spectral", {"max": True}),
        ("SpectralConv", {}),
    ]
    return _scion_groups(params, norms, unconstrained=False)


def _scion_groups(params: Any, norms: Any, unconstrained: bool) -> Any:
    groups = [
        {"params": [param], "norm": norm, "norm_kwargs": options}
        for param, (norm, options) in zip(params, norms, strict=True)
    ]
    return _load("scion", "scion").Scion(groups, lr=0.1, unconstrained=unconstrained)


CASES = [mars, mars_1d, soap, soap_merged, scion, scion_norms, scion_more_norms]


def _load(folder: str, module: str) -> Any:
    found = subprocess.check_output(["git", "-C", folder, "rev-parse", "HEAD"])
    assert found.decode().strip() == SOURCES[folder], f"{folder} is at {found}"
    sys.path.insert(0, folder)
    return importlib.import_module(module)


def _in_float64() -> None:
    torch.set_default_dtype(torch.float64)
    torch.compile = lambda function=None, **_: function or (lambda decorated: decorated)
    torch.Tensor.float = torch.Tensor.bfloat16 = lambda tensor: tensor
    torch.randn_like = lambda tensor: torch.tensor(inputs.stand_in(tuple(tensor.shape)))


def record(make: Callable[[Any], Any]) -> dict[str, np.ndarray]:
    """The parameters after each step, stacked."""
    params = {
        name: torch.nn.Parameter(torch.tensor(value))
        for name, value in inputs.params().items()
    }
    optimizer = make(list(params.values()))
    history = {name: [] for name in params}
    for gradients in inputs.gradients():
        for name, param in params.items():
            param.grad = torch.tensor(gradients[name])
        optimizer.step()
        for name, param in params.items():
            history[name].append(param.detach().numpy().copy())
    return {name: np.stack(values) for name, values in history.items()}


if __name__ == "__main__":
    _in_float64()
    for case in CASES:
        trajectory = record(case)
        with (FOLDER / f"{case.__name__}.npz").open("wb") as file:
            np.savez(file, allow_pickle=False, **trajectory)
