"""The one error of the layer format."""


class FormatError(ValueError):
    """What was read is malformed or hostile; the message names the object and the field.

    Writers raise it too, for input that the format cannot express: nothing that a reader would refuse is ever written.
    """
