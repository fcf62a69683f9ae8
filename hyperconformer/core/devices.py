"""Where to compute."""

import torch


def list_devices():
    """Names of the devices that are here, for people.

    Returns
    -------
    list of str
    """
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [
            f"cuda:{index} ({torch.cuda.get_device_name(index)})"
            for index in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def find_device(name):
    """The device that a user names, if it can compute.

    Arguments
    ---------
    name : str or torch.device
        For instance ``cpu``, ``cuda`` or ``cuda:1``.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        If torch does not know it, or it is not there.

    Example
    -------
    >>> find_device("cpu")
    device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    # A torch that was built without CUDA raises AssertionError.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"the device {str(name)!r} cannot be used ({str(error).splitlines()[0]}); "
            f"here are: {', '.join(list_devices())}"
        ) from error
    return device
