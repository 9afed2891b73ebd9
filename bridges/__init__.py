"""The kernels as differentiable functions of other libraries.

Each module is the bridge to one library, which it imports: ``from plugrad.bridges import torch``. ``import
plugrad.bridges`` alone imports none.
"""
