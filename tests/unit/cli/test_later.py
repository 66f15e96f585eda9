"""Modules that are read when somebody first looks into them."""

from __future__ import annotations

import subprocess
import sys


def said(code: str) -> str:
    """What another interpreter prints, in which nothing is loaded yet."""
    script = f"import sys\nfrom tunnel.cli.later import LATER, put_off\n{code}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def test_what_trio_imports_for_tls_and_foreign_names_is_not_read() -> None:
    code = "put_off(*LATER); import trio, ssl, idna; print('_ssl' in sys.modules, 'idna.core' in sys.modules)"
    assert said(code) == "False False"


def test_it_is_there_for_whoever_looks_and_the_same_for_all() -> None:
    code = (
        "put_off(*LATER); import ssl, trio._ssl; from ssl import SSLContext, create_default_context; import idna\n"
        "assert trio._ssl._stdlib_ssl is ssl is sys.modules['ssl'] and ssl.SSLContext is SSLContext\n"
        "print(type(create_default_context()).__name__, idna.encode('b\\xfccher.de').decode(), type(ssl).__name__)"
    )
    assert said(code) == "SSLContext xn--bcher-kva.de module"


def test_a_name_that_it_lacks_is_the_usual_error() -> None:
    code = "put_off(*LATER); import ssl\ntry: ssl.nothing\nexcept AttributeError as error: print(error)"
    assert said(code) == "module 'ssl' has no attribute 'nothing'"


def test_what_is_loaded_or_missing_stays_as_it_is() -> None:
    code = "import json as before; put_off('json', 'no_such_module_at_all'); import json; print(json is before)"
    assert said(code) == "True"
    assert said("put_off('no_such_module_at_all'); print('no_such_module_at_all' in sys.modules)") == "False"


def test_two_threads_that_look_at_once_both_find_all_of_it() -> None:
    code = (
        "put_off(*LATER); import ssl, threading; found = []; start = threading.Barrier(8)\n"
        "def look(): start.wait(30); found.append(ssl.create_default_context is not None)\n"
        "threads = [threading.Thread(target=look) for _ in range(8)]\n"
        "for each in threads: each.start()\n"
        "for each in threads: each.join(30)\n"
        "print(found == [True] * 8)"
    )
    assert said(code) == "True"
