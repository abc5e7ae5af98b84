"""What the NumPy backend would do: its modules say it, from what they are cut and computed by."""

from collections.abc import Callable

from gpuconv.backends.cpu import activations, adaptive, columns, convolution, pooling
from gpuconv.backends.plans import Part
from gpuconv.backends.unmade import Note, Unmade

PLANS: dict[str, Callable[..., Part]] = {
    "activations.relu_input_grad": activations.plan_relu_input_grad,
    "convolution.forward": convolution.plan_forward,
    "convolution.input_grad": convolution.plan_input_grad,
    "convolution.weight_grad": convolution.plan_weight_grad,
    "convolution.bias_grad": convolution.plan_bias_grad,
    "columns.im2col": columns.plan_im2col,
    "columns.col2im": columns.plan_col2im,
}


def plan(primitive: Note) -> Part:
    """Return how this backend would compute a primitive."""
    arguments = {
        name: value.layout if isinstance(value, Unmade) else value
        for name, value in primitive.arguments.items()
    }
    if (own := PLANS.get(primitive.what)) is not None:
        return own(**arguments)
    module, _, name = primitive.what.partition(".")
    return {"adaptive": adaptive.plan, "pooling": pooling.plan}[module](name, **arguments)
