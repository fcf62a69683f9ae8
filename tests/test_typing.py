"""The public API is annotated, and type checkers are told so."""

import ast
import inspect
import pathlib

import pytest

import hyperconformer

PACKAGE = pathlib.Path(hyperconformer.__file__).parent


def public_functions(name):
    """A public function, or the constructor and the public methods of a class.

    Methods that other packages define are left to these.
    """
    item = getattr(hyperconformer, name)
    if not inspect.isclass(item):
        yield name, item
        return
    for method, static in _members(item):
        public = method == "__init__" or not method.startswith("_")
        function = static.fget if isinstance(static, property) else static
        if isinstance(function, (classmethod, staticmethod)):
            function = function.__func__
        if public and inspect.isfunction(function):
            if function.__module__.partition(".")[0] == "hyperconformer":
                yield f"{name}.{method}", function


def _members(cls):
    for base in reversed(cls.__mro__):
        yield from vars(base).items()


@pytest.mark.parametrize("name", hyperconformer.__all__)
def test_every_parameter_and_result_is_annotated(name):
    bare = []
    for where, function in public_functions(name):
        signature = inspect.signature(function)
        for parameter in list(signature.parameters.values()):
            if parameter.name != "self" and parameter.annotation is parameter.empty:
                bare.append(f"{where}: {parameter.name}")
        # mypy takes a constructor's result for granted.
        if signature.return_annotation is signature.empty and "__init__" not in where:
            bare.append(f"{where}: its result")
    assert not bare, "\n".join(bare)


def test_type_checkers_are_told():
    assert (PACKAGE / "py.typed").is_file()


def test_type_checkers_see_the_names_that_are_loaded():
    """``__getattr__`` hides the modules of the names; the checkers read a list."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module.removeprefix("hyperconformer.")
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    }
    assert seen == hyperconformer._PUBLIC
