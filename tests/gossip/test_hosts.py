"""hosts.txt: what each sort of line means, what the digest is made of, and for each mistake the line and the fix."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zpala.gossip.hosts import LINES_MAX, Host, HostList, HostsError, agreed_lines, parse_hosts

KEY = "0123456789abcdef" * 4
FILE = f"""# four nodes
gpu1 192.168.0.7:5670 {KEY}   # the fast one

192.168.0.8:5670 {"e" * 64}
  left-wing_2.x\t[2001:DB8:0::7]:1\t{"d" * 64}\t
Node-4.Example.org.:65535 {"f" * 64}
"""


def outcome_of(text: str) -> HostList | HostsError:
    try:
        return parse_hosts(text, "h")
    except HostsError as error:
        return error


def test_every_form_of_a_line() -> None:
    assert parse_hosts(FILE, "hosts.txt").hosts == (
        Host(0, "gpu1", "192.168.0.7", 5670, KEY, 2),
        Host(1, "192.168.0.8:5670", "192.168.0.8", 5670, "e" * 64, 4),
        Host(2, "left-wing_2.x", "2001:db8::7", 1, "d" * 64, 5),
        Host(3, "node-4.example.org:65535", "node-4.example.org", 65535, "f" * 64, 6),
    )


def test_a_list_of_hosts_is_a_sequence() -> None:
    hosts = parse_hosts(FILE, "hosts.txt")
    assert len(hosts) == 4
    assert [host.line for host in hosts] == [0, 1, 2, 3]
    assert hosts[2].host_port == "[2001:db8::7]:1"


def test_digest_is_blake2b_of_the_canonical_lines() -> None:
    canonical = f"gpu1 {KEY}\n- {'e' * 64}\nleft-wing_2.x {'d' * 64}\n- {'f' * 64}\n"
    assert parse_hosts(FILE, "x").digest == hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
    without_key = hashlib.blake2b(b"a -\n10.0.0.2:1 -\n", digest_size=16).hexdigest()
    assert parse_hosts("a 10.0.0.1:1\n10.0.0.2:1", "x").digest == without_key


def test_line_endings_comments_blanks_and_spelling_do_not_matter() -> None:
    same = "\ufeff" + FILE.replace("# four nodes\n", "\n\n").replace("\n", "\r\n").replace(KEY, KEY.upper()).replace("Node", "NODE")
    assert parse_hosts(same, "x").digest == parse_hosts(FILE, "x").digest


@pytest.mark.parametrize(
    "other",
    [
        "b 10.0.0.2:1\na 10.0.0.1:1",
        "a 10.0.0.1:1",
        "c 10.0.0.1:1\nb 10.0.0.2:1",
        f"a 10.0.0.1:1 {KEY}\nb 10.0.0.2:1 {'e' * 64}",
    ],
)
def test_order_number_name_and_key_matter(other: str) -> None:
    assert parse_hosts(other, "x").digest != parse_hosts("a 10.0.0.1:1\nb 10.0.0.2:1", "x").digest


@pytest.mark.parametrize(
    ("line", "matters"),
    [("a {}", False), ("{}", True), (f"{{}} {KEY}", False), (f"a {{}} {KEY}", False)],
    ids=["name", "neither", "key", "both"],
)
def test_the_address_matters_only_where_it_is_all_that_tells_who_the_node_is(line: str, matters: bool) -> None:
    here, there = (parse_hosts(line.format(address), "x") for address in ("10.0.0.1:1", "10.0.0.9:2"))
    assert (here.digest != there.digest) is matters
    assert (here.discontinued(there, "x") is not None) is matters


# ---- while a run lives ----------------------------------------------------------------------------------------------------------------

THREE = "a 10.0.0.1:1\nb 10.0.0.2:1\nc 10.0.0.3:1\n"


@pytest.mark.parametrize("later", [THREE, THREE + "d 10.0.0.4:1\n10.0.0.5:1", "# x\n" + THREE.replace("0.2:1", "0.9:7")])
def test_a_list_that_begins_with_the_same_nodes_follows(later: str) -> None:
    assert parse_hosts(THREE, "x").discontinued(parse_hosts(later, "x"), "x") is None


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ("a 10.0.0.1:1\n\nx 10.0.0.2:1\nc 10.0.0.3:1", "h.txt:3: node number 2 was b and is now x; "),
        ("a 10.0.0.1:1\nc 10.0.0.3:1\nb 10.0.0.2:1", "h.txt:2: node number 2 was b and is now c; "),
        (f"a 10.0.0.1:1 {KEY}\n", f"h.txt:1: node number 1 was a with no key and is now a with the key {KEY}; "),
        ("a 10.0.0.1:1\nb 10.0.0.2:1\n", "h.txt:2: the file ends after 2 nodes and had 3: c, line 3 until now, is missing; "),
    ],
    ids=["renamed", "swapped", "key", "shorter"],
)
def test_one_that_does_not_is_refused_with_file_line_and_both_values(later: str, said: str) -> None:
    text = parse_hosts(THREE, "x").discontinued(parse_hosts(later, "x"), "h.txt")
    assert text is not None
    assert text.startswith(said)
    assert text.endswith("put it back")


def test_what_is_agreed_on_tells_how_many_lines_it_is_about() -> None:
    three, four = parse_hosts(THREE, "x"), parse_hosts(THREE + "d 10.0.0.4:1", "x")
    assert three.agreed(3) == four.agreed(3) != four.agreed(4)
    assert agreed_lines(four.agreed(3)) == 3
    assert [agreed_lines(text) for text in ("", "3 lines", three.digest, "0 lines " + "a" * 32, "-1 lines " + "a" * 32)] == [0] * 5


def test_a_hash_inside_a_word_is_no_comment() -> None:
    with pytest.raises(HostsError, match=r"h\.txt:1: the name 'gpu#1' cannot be used"):
        parse_hosts("gpu#1 10.0.0.1:5670", "h.txt")


@pytest.mark.parametrize(
    ("line", "what", "fix"),
    [
        ("10.0.0.1", "'10.0.0.1' has no port", "write host:port"),
        ("gpu1 10.0.0.1", "'10.0.0.1' has no port", "write host:port"),
        (":5670", "':5670' has no host", "write host:port"),
        ("[::1]", "'[::1]' has no port", "write host:port"),
        ("10.0.0.1:", "the port '' is none", "1 to 65535"),
        ("10.0.0.1:0", "the port '0' is none", "1 to 65535"),
        ("10.0.0.1:65536", "the port '65536' is none", "1 to 65535"),
        ("10.0.0.1:+567", "the port '+567' is none", "1 to 65535"),
        ("10.0.0.1:٣٣", "the port '٣٣' is none", "1 to 65535"),
        ("10.0.0.1:port", "the port 'port' is none", "1 to 65535"),
        ("10.0.0.256:1", "'10.0.0.256' is no IPv4 address", "0 to 255"),
        ("10.0.0:1", "'10.0.0' is no IPv4 address", "0 to 255"),
        ("::1:5670", "the IPv6 address ::1 stands without brackets", "write [::1]:port"),
        ("[::g]:5670", "'[::g]' is no IPv6 address", "brackets"),
        ("[10.0.0.1]:5670", "'[10.0.0.1]' is no IPv6 address", "brackets"),
        ("tcp://10.0.0.1:5670", "'tcp://10.0.0.1' is no IPv6 address", "brackets"),
        ("0.0.0.0:5670", "0.0.0.0 is no address that a peer can dial", "other nodes reach this machine"),
        ("[::]:5670", ":: is no address that a peer can dial", "other nodes reach this machine"),
        ("224.0.0.1:5670", "224.0.0.1 is no address", "other nodes reach this machine"),
        ("*:5670", "'*' is no host name", "letters, digits"),
        ("a..b:5670", "'a..b' is no host name", "letters, digits"),
        ("-a:5670", "'-a' is no host name", "letters, digits"),
        ("knödel:5670", "'knödel' is no host name", "xn--"),
        ("x" * 64 + ":5670", "is no host name", "letters, digits"),
        ("../etc 10.0.0.1:5670", "the name '../etc' cannot be used", "letters"),
        ("x" * 65 + " 10.0.0.1:5670", "cannot be used", "1 to 64"),
        ("10.0.0.1:5670 gpu1", "'gpu1' is no key", "a name stands before the address"),
        (f"10.0.0.1:5670 {KEY[1:]}", "is no key", "64 hex digits"),
        (f"10.0.0.1:5670 {KEY}0", "is no key", "64 hex digits"),
        (f"a 10.0.0.1:5670 {KEY} b", "4 words", "'#' before a comment"),
        (f"a 10.0.0.1:5670 {KEY}# b", "4 words", "'#' before a comment"),
        ("10.0.0.9:5670", "the address 10.0.0.9:5670 stands in line 2 already", "own"),
        ("first 10.0.0.1:5670", "the name first stands in line 2 already", "own"),
        ("10.0.0.1:5670 " + "e" * 64, f"the key {'e' * 64} stands in line 2 already", "own"),
        ("10.0.0.1:5670", "10.0.0.1:5670 has no key, and line 2 has one", "every node a key or none"),
    ],
)
def test_each_mistake_names_file_line_and_fix(line: str, what: str, fix: str) -> None:
    text = f"# nodes\nfirst 10.0.0.9:5670 {'e' * 64}\n\n{line}\n10.0.0.2:5670\n"
    with pytest.raises(HostsError) as caught:
        parse_hosts(text, "lab/hosts.txt")
    place, _, message = str(caught.value).partition(": ")
    assert place == "lab/hosts.txt:4"
    assert what in message.split("; ", 1)[0]
    assert fix in message.split("; ", 1)[1]
    assert "\n" not in message


def test_two_spellings_of_one_address_are_one_address() -> None:
    with pytest.raises(HostsError, match=r"h:2: the address \[::1\]:1 stands in line 1"):
        parse_hosts("[::1]:1\n[0:0::1]:01\n", "h")


def test_a_name_may_look_like_the_key_of_another() -> None:
    assert [host.name for host in parse_hosts(f"a 10.0.0.1:1 {KEY}\n{KEY} 10.0.0.2:1 {'e' * 64}", "h")] == ["a", KEY]


def test_a_file_has_keys_on_every_line_or_on_none() -> None:
    assert parse_hosts(FILE, "h").keyed
    assert not parse_hosts("a 10.0.0.1:1\nb 10.0.0.2:1", "h").keyed
    with pytest.raises(HostsError, match=r"^h:2: b has a key, and line 1 has none; give every node a key or none$"):
        parse_hosts(f"a 10.0.0.1:1\nb 10.0.0.2:1 {KEY}", "h")


@pytest.mark.parametrize("text", ["", "\n \n", "# nothing\n   # at all"])
def test_a_file_without_a_node_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(HostsError, match=r"^h\.txt:1: no node in the file; write one 'host:port' per line"):
        parse_hosts(text, "h.txt")


def test_number_of_nodes() -> None:
    lines = [f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}:5670" for index in range(LINES_MAX + 1)]
    assert len(parse_hosts("\n".join(lines[:LINES_MAX]), "h")) == LINES_MAX
    with pytest.raises(HostsError, match=f"h:{LINES_MAX + 1}: node number {LINES_MAX + 1}; a run has at most {LINES_MAX} nodes"):
        parse_hosts("\n".join(lines), "h")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text(st.sampled_from("ab1.:[]# \t\r\n-0f\x00é") | st.characters(), max_size=60))
def test_any_text_is_parsed_or_refused_with_its_line(text: str) -> None:
    outcome = outcome_of(text)
    if isinstance(outcome, HostsError):
        assert str(outcome).startswith("h:")
        assert "; " in str(outcome)
    else:
        assert [host.line for host in outcome] == list(range(len(outcome)))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.ip_addresses(), st.integers(1, 65535)), min_size=1, max_size=8, unique=True))
def test_addresses_come_back_as_they_were_written(addresses: list[tuple[object, int]]) -> None:
    lines = [f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}" for address, port in addresses]
    outcome = outcome_of("\n".join(lines))
    if isinstance(outcome, HostsError):
        assert "is no address that a peer can dial" in str(outcome)
    else:
        assert [(host.address, host.port) for host in outcome] == [(str(address), port) for address, port in addresses]
