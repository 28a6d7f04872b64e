"""What a tree of optimizers means: each meaning is one function over the tree.

`held.py` is the tree itself: which optimizers one holds, and for which parameters.
Everything else is a function of it, so that a wrapper of one optimizer needs no line of
its own:

- `frozen.py`: which parameters never change;
- `decay.py`: the same tree with another weight decay;
- `rates.py`: the same tree with scaled learning rates;
- `state_dtype.py`: the same tree with its state in another dtype;
- `assignments.py`: what each parameter gets.

An optimizer that is special in one of these registers a case of that function beside
its class.
"""
