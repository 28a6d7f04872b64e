"""Records what the authors' own implementations do with `trajectory_inputs`.

    python -m venv authors && authors/bin/pip install numpy==2.4.6 torch==2.13.0
    authors/bin/pip install --no-deps kron-torch==0.3.3 quad-torch==0.4.5 opt-einsum
    authors/bin/pip install --no-deps adam-mini==1.1.1 prodigyopt==1.1.2
    git clone https://github.com/AGI-Arena/MARS
    git clone https://github.com/nikhilvyas/SOAP
    git clone https://github.com/LIONS-EPFL/scion
    git clone https://github.com/lixilinx/psgd_torch
    git clone https://github.com/apple/ml-ademamix
    git clone https://github.com/iShohei220/adopt
    git clone https://github.com/Liuhong99/Sophia
    git clone https://github.com/kyleliang919/C-Optim
    authors/bin/python tests/record_trajectories.py

The clones are looked for in the working directory, at the commits in `SOURCES`. Each
case is one .npz in `trajectories`: the parameters after each of the 20 steps.

What is recorded is the algorithm in float64, not its rounding: casts to narrower floats
are turned off, and so is `torch.compile`. Numbers drawn at random are those of
`trajectory_inputs.stand_in`.
"""

import importlib
import importlib.metadata
import math
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import trajectory_inputs as inputs


SOURCES = {
    "C-Optim": "2c0517c4db2e50b56d389ba4803eab1f4b3b8ae3",
    "MARS/MARS/optimizers": "4831e28eba863a4e69d7e9474ff8e73bc1b410fe",
    "SOAP": "a1e553530fde97d0e6b307d7c82ac6d38b072340",
    "Sophia": "a7e157229b71d58cf995d32854f1be15c265b350",
    "adopt/src": "6468572b4b3688a2f056b796b071da540568520e",
    "ml-ademamix/pytorch": "c3d73c09f1287e5c33b95189bb0aa7de0a5a7667",
    "psgd_torch": "a8616f1d802136159793419ed382cd2ba8fb91dd",
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


def kron(params: Any) -> Any:
    options = dict(weight_decay=0.2, precond_dtype=torch.float64, precond_lr=0.3)
    return _kron().Kron(params, lr=0.1, **options)


def kron_every_third(params: Any) -> Any:
    return _kron().Kron(
        params,
        lr=0.1,
        b1=0.5,
        preconditioner_update_probability=0.35,
        max_size_triangular=6,
        min_ndim_triangular=1,
        memory_save_mode="smart_one_diag",
        momentum_into_precond_update=False,
        precond_init_scale=0.5,
        merge_dims=False,
        precond_dtype=torch.float64,
    )


def kron_flat_start(params: Any) -> Any:
    module = _kron()
    probability = module.precond_update_prob_schedule(1.0, 0.2, 0.3, 5)
    return module.Kron(
        params,
        lr=0.1,
        preconditioner_update_probability=probability,
        memory_save_mode="one_diag",
        precond_dtype=torch.float64,
    )


def _kron() -> Any:
    """Without its slip of writing the noise of the fit into the momentum itself."""
    module: Any = importlib.import_module("kron_torch.kron")
    assert importlib.metadata.version("kron-torch") == "0.3.3"
    if not hasattr(module, "fit"):
        module.fit = module._update_precond
        module._update_precond = lambda factors, expressions, signal, *sizes: (
            module.fit(factors, expressions, signal.clone(), *sizes)
        )
    return module


def quad(params: Any) -> Any:
    return _quad().QUAD(params, lr=0.1, weight_decay=0.2)


def quad_diagonal(params: Any) -> Any:
    return _quad().QUAD(
        params,
        lr=0.1,
        lr_style=None,
        momentum=0.6,
        weight_decay=0.0,
        max_size_dense=6,
        max_skew_dense=2.0,
        preconditioner_lr=0.4,
        noise_scale=1e-3,
    )


def _quad() -> Any:
    """With the `max` that it looks for in `math`, and a product of a matrix with a row
    as `torch.compile` makes it. Both fail otherwise."""
    torch.Tensor.mv = lambda matrix, row: (matrix * row).sum(1)
    module: Any = importlib.import_module("quad_torch.quad")
    assert importlib.metadata.version("quad-torch") == "0.4.5"
    module.math = types.SimpleNamespace(prod=math.prod, max=max)
    return module


def skew(params: Any) -> Any:
    return PSGD(params, momentum=0.5, preconditioner_init_scale=1.0)


def skew_diagonal(params: Any) -> Any:
    return PSGD(
        params,
        momentum=0.4,
        preconditioner_init_scale=1.0,
        preconditioner_max_size=6,
        preconditioner_max_skew=2.0,
        damping=1e-3,
    )


class PSGD:
    """`KronWhiten` in the place of a torch optimizer, on matrices as `Skew` sees them.

    It is told to do what differs from `Skew` in the same way: to whiten the momentum,
    which has the same weights up to a momentum of 1/2; to move factors at the rate that
    `Skew` falls to; and to scale steps down in the same way.
    """

    def __init__(self, params: Any, **options: Any):
        self._params = params
        self._matrices = [_matrix(param) for param in params]
        self._optimizer = _load("psgd_torch", "psgd").KronWhiten(
            self._matrices,
            lr_params=0.1,
            lr_preconditioner=0.3,
            betaL=0.95,
            grad_clip_max_amps=(1.05, math.inf),
            whiten_grad=False,
            **options,
        )

    def step(self) -> None:
        gradients = [_matrix(param.grad) for param in self._params]
        self._optimizer.step(
            lambda: sum(
                (matrix * gradient).sum()
                for matrix, gradient in zip(self._matrices, gradients, strict=True)
            )
        )
        for param, matrix in zip(self._params, self._matrices, strict=True):
            param.data.copy_(matrix.detach().reshape(param.shape))


def _matrix(tensor: Any) -> Any:
    shape = tensor.shape if tensor.dim() < 3 else (tensor.shape[:-1].numel(), -1)
    return tensor.detach().clone().reshape(shape).requires_grad_()


def adam_mini(params: Any) -> Any:
    """By names: a block, an entry, two rows, a row, and a block each."""
    assert importlib.metadata.version("adam-mini") == "1.1.1"
    names = ("norm", "bias", "wq", "mlp", "stack")
    module: Any = importlib.import_module("adam_mini")
    return module.Adam_mini(
        zip(names, params, strict=True),
        lr=0.1,
        betas=(0.8, 0.95),
        weight_decay=0.2,
        dim=6,
        n_heads=3,
        verbose=False,
    )


def prodigy(params: Any) -> Any:
    return _prodigy(params, betas=(0.9, 0.999), weight_decay=0.2)


def prodigy_safeguard(params: Any) -> Any:
    return _prodigy(params, betas=(0.8, 0.95), safeguard_warmup=True, d0=1e-3)


def _prodigy(params: Any, **options: Any) -> Any:
    assert importlib.metadata.version("prodigyopt") == "1.1.2"
    module: Any = importlib.import_module("prodigyopt")
    return module.Prodigy(params, lr=1.0, use_bias_correction=True, **options)


def ademamix(params: Any) -> Any:
    return _load("ml-ademamix/pytorch", "ademamix").AdEMAMix(
        params, lr=0.1, betas=(0.8, 0.95, 0.99), alpha=3.0, weight_decay=0.2
    )


def adopt(params: Any) -> Any:
    module = _load("adopt/src", "adopt")
    return module.ADOPT(params, lr=0.1, betas=(0.8, 0.95), eps=1e-3, foreach=False)


class SophiaG:
    """Sophia with the square of the gradient as its estimate of the Hessian.

    Optax corrects the momentum for its start at 0, and the authors' code does not. A
    `rho` multiplied by the correction does the same.
    """

    def __init__(self, params: Any):
        self._optimizer = _load("Sophia", "sophia").SophiaG(
            params, lr=0.1, betas=(0.8, 0.95), weight_decay=0.2
        )
        self._count = 0

    def step(self) -> None:
        (group,) = self._optimizer.param_groups
        group["rho"] = 0.3 * (1 - 0.8 ** (self._count + 1))
        self._optimizer.step(bs=1)
        if self._count % 3 == 0:
            self._optimizer.update_hessian()
        self._count += 1


def sophia(params: Any) -> Any:
    return SophiaG(params)


def cautious(params: Any) -> Any:
    return _load("C-Optim", "c_adamw", ".").AdamW(
        params, lr=0.1, betas=(0.8, 0.95), eps=0.0, weight_decay=0.2, foreach=False
    )


def _load(folder: str, module: str, root: str | None = None) -> Any:
    """A module of a clone; one of the package that the clone is, if it has a `root`."""
    found = subprocess.check_output(["git", "-C", folder, "rev-parse", "HEAD"])
    assert found.decode().strip() == SOURCES[folder], f"{folder} is at {found}"
    sys.path.insert(0, folder if root is None else root)
    return importlib.import_module(module if root is None else f"{folder}.{module}")


def _in_float64() -> None:
    torch.set_default_dtype(torch.float64)
    torch.compile = lambda function=None, **_: function or (lambda decorated: decorated)
    torch.Tensor.float = torch.Tensor.bfloat16 = lambda tensor: tensor
    torch.randn = lambda *shape, **_: torch.tensor(inputs.stand_in(shape))
    torch.rand = lambda *_: torch.tensor(0.5)
    torch.randn_like = lambda tensor: torch.tensor(inputs.stand_in(tuple(tensor.shape)))


def record(make: Callable[[Any], Any]) -> dict[str, np.ndarray]:
    """The parameters after each step, stacked. Not all that is recorded takes scalars:
    they are vectors of one."""
    params = {
        name: torch.nn.Parameter(torch.tensor(np.atleast_1d(value)))
        for name, value in inputs.params().items()
    }
    optimizer = make(list(params.values()))
    history = {name: [] for name in params}
    for gradients in inputs.gradients():
        for name, param in params.items():
            param.grad = torch.tensor(np.atleast_1d(gradients[name]))
        optimizer.step()
        for name, param in params.items():
            value = param.detach().numpy().reshape(inputs.SHAPES[name])
            history[name].append(value.copy())
    return {name: np.stack(values) for name, values in history.items()}


CASES = [
    *(mars, mars_1d, soap, soap_merged, scion, scion_norms, scion_more_norms),
    *(kron, kron_every_third, kron_flat_start),
    *(quad, quad_diagonal, skew, skew_diagonal),
    *(adam_mini, prodigy, prodigy_safeguard, ademamix, adopt, sophia, cautious),
]

if __name__ == "__main__":
    _in_float64()
    for case in CASES:
        trajectory = record(case)
        with (inputs.TRAJECTORIES / f"{case.__name__}.npz").open("wb") as file:
            np.savez(file, allow_pickle=False, **trajectory)
