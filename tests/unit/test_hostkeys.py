"""Keys of hosts: the names that they stand for. tests/contract/test_ansible.py compares more."""

from __future__ import annotations

import pytest

from daemon.hostkeys import MAX_HOSTS, BadKey, expand

KEYS: dict[str, tuple[str, int | None]] = {
    "web1": ("web1", None),
    "a_b-c.d.example.com": ("a_b-c.d.example.com", None),
    "web[1:3]": ("web1 web2 web3", None),
    "web[01:03]": ("web01 web02 web03", None),
    "web[8:11]": ("web8 web9 web10 web11", None),
    "web[:2]": ("web0 web1 web2", None),
    "web[1:9:4]": ("web1 web5 web9", None),
    "db-[a:c].x": ("db-a.x db-b.x db-c.x", None),
    "db[y:B]": ("dby dbz dbA dbB", None),
    "r[1:2]-[a:b]": ("r1-a r1-b r2-a r2-b", None),
    "web1:2222": ("web1", 2222),
    "web[1:2]:22": ("web1 web2", 22),
    "192.0.2.1": ("192.0.2.1", None),
    "192.0.2.[1:2]:22": ("192.0.2.1 192.0.2.2", 22),
    "fe80::1": ("fe80::1", None),
    "fe80::[1:2]": ("fe80::1 fe80::2", None),
    "[fe80::1]:22": ("fe80::1", 22),
    "[web1]:22": ("web1", 22),
}


@pytest.mark.parametrize("key", KEYS)
def test_what_a_key_stands_for(key: str) -> None:
    """One host or many, in order, and the port of all of them."""
    names, port = KEYS[key]
    assert expand(key) == (names.split(), port)


BAD = {
    "": "is not a name",
    "web 1": "is not a name",
    "-oProxyCommand=x": "is not a name",
    "web[1:3": "is not a name",
    "web]1[": "is not a name",
    "web[]": "[] is not a range",
    "web[1]": "[1] is not a range",
    "web[1:]": "[1:] is not a range",
    "web[1:b]": "[1:b] is not a range",
    "web[ab:cd]": "[ab:cd] is not a range",
    "web[1:3:0]": "steps of 0",
    "web[01:100]": "differ in length",
    "web[3:1]": "ends before it begins",
    "web[c:a]": "ends before it begins",
    f"web[1:{MAX_HOSTS + 1}]": "more than 10000",
    "web[1:101]-[1:100]": "more than 10000",
    "web1:0": "0 is no port",
    "web1:65536": "65536 is no port",
    "web_:22": "takes no port",
    "w[:3]:22": "this range takes no port",
    "[1:3]-[1:3]:22": "this range takes no port",
    "[1:3]:22": "is not an address and a port",
    "[64:ff9b::192.0.2.1]:22": "is not an address and a port",
    "fe80::1%eth0": "is not a name",
}


@pytest.mark.parametrize("key", BAD)
def test_a_key_that_names_no_host(key: str) -> None:
    """Is told with what is wrong, never taken for something odd."""
    with pytest.raises(BadKey) as caught:
        expand(key)
    assert BAD[key] in str(caught.value)


def test_as_many_hosts_as_one_key_may_name() -> None:
    """The bound itself is within it."""
    assert len(expand(f"web[1:{MAX_HOSTS}]")[0]) == MAX_HOSTS
