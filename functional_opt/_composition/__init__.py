"""Functions over a tree of optimizers.

`held.py` defines the tree: the optimizers that an optimizer holds, and the parameters
of each. All other functions are defined over this tree, so that a wrapper of one
optimizer requires no code for them:

- `frozen.py`: which parameters never change;
- `decay.py`: the same tree with another weight decay;
- `rates.py`: the same tree with scaled learning rates;
- `state_dtype.py`: the same tree with its state in another dtype;
- `assignments.py`: the optimizer, learning rate and decay of each parameter.

An optimizer with different behaviour registers its own case of such a function
(`functools.singledispatch`) next to its class.
"""
