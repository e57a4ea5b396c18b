"""Which addresses are inside of a network; tests/model/test_storage.py follows redirects."""

from afn_model import redirects


def test_addresses_inside_of_a_network():
    inside = ["127.8.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1"]
    inside += ["::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1"]
    assert all(map(redirects.is_inside, inside))
    assert not any(map(redirects.is_inside, ["1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:1.1.1.1"]))
