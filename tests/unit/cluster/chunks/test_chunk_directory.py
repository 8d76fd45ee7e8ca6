"""A directory told by servers that die, come back, or were not heard; and where it sends copies."""

from cluster.chunks.directory import ORDER_SECONDS, SILENT_SECONDS, Directory
from cluster.chunks.labels import DURABLE, Gone, Label, Life, Order, Report
from cluster.chunks.replicas import Host, targets

NOW = SILENT_SECONDS + 1


def label(number: int, tenant: str = "red", names: tuple[str, ...] = ()) -> Label:
    return Label(tenant, "weights-a", f"{number}", 4096, names)


def everything(node: str, *labels: Label, born: int = 1, number: int = 0, free: int = 10**6) -> Report:
    return Report(Life(node, born), None, number, free, labels)


def change(node: str, base: int, *added: Label, removed=(), declined=(), born: int = 1) -> Report:
    return Report(Life(node, born), base, base + 1, 10**6, added, tuple(removed), tuple(declined))


def directory_of(copies: int = 1) -> Directory:
    return Directory(copies, 0.0)


def nodes_of(directory: Directory, one: Label, now: float = NOW) -> tuple[str, ...]:
    where = directory.find(one.tenant, [one.chunk_id], now).places.get(one.chunk_id)
    return () if where is None else where[1]


def test_what_a_server_reports_is_found_by_its_tenant_and_by_all_its_names():
    directory = directory_of()
    one = label(1, names=("old",))
    assert directory.report(everything("a", one), NOW).heard == 0
    where = directory.find("red", ["1", "old", "2"], NOW)
    assert where.places == {"1": (one, ("a",)), "old": (one, ("a",))}
    assert directory.find("blue", ["1", "old"], NOW).places == {}
    assert directory.faults() == []


def test_a_change_whose_forerunner_was_not_heard_is_refused_until_all_is_told():
    directory = directory_of()
    directory.report(everything("a", label(1)), NOW)
    assert directory.report(change("a", 0, label(2)), NOW).heard == 1
    assert directory.report(change("a", 5, label(3)), NOW).heard is None
    assert nodes_of(directory, label(3)) == ()
    assert directory.report(change("a", 1, label(3)), NOW).heard is None
    assert directory.report(everything("a", label(2), number=9), NOW).heard == 9
    assert (nodes_of(directory, label(1)), nodes_of(directory, label(2))) == ((), ("a",))
    assert directory.report(change("b", 3, label(4)), NOW).heard is None
    assert directory.faults() == []


def test_claims_of_an_earlier_life_are_refused_and_those_before_a_restart_are_lost():
    directory = directory_of()
    directory.report(everything("a", label(1), label(2)), NOW)
    directory.report(everything("b", label(2)), NOW)
    directory.report(everything("a", born=2), NOW)
    assert (nodes_of(directory, label(1)), nodes_of(directory, label(2))) == ((), ("b",))
    assert directory.find("red", ["1"], NOW).gone == {"1": Gone.LOST}
    stale = directory.report(everything("a", label(1), number=7), NOW)
    assert (stale.heard, stale.orders) == (None, ())
    assert directory.report(change("a", 7, label(1)), NOW).heard is None
    assert nodes_of(directory, label(1)) == ()
    assert directory.faults() == []


def test_a_silent_server_counts_as_dead_until_it_speaks_again():
    directory = directory_of()
    directory.report(everything("a", label(1)), NOW)
    assert nodes_of(directory, label(1), NOW + SILENT_SECONDS) == ("a",)
    assert nodes_of(directory, label(1), NOW + SILENT_SECONDS + 0.1) == ()
    assert directory.report(change("a", 0, label(2)), NOW + 6).heard is None
    directory.report(everything("a", label(1), label(2)), NOW + 6)
    assert nodes_of(directory, label(1), NOW + 6) == ("a",)


def test_why_a_chunk_is_gone_is_remembered():
    directory = directory_of()
    directory.report(everything("a", label(1, names=("old",)), label(2)), NOW)
    directory.report(
        change("a", 0, removed=[(label(1).key, Gone.EVICTED), (label(2).key, Gone.LOST), (label(3).key, Gone.EVICTED)]),
        NOW,
    )
    found = directory.find("red", ["1", "old", "2", "3", "4"], NOW)
    assert found.gone == {"1": Gone.EVICTED, "old": Gone.EVICTED, "2": Gone.LOST, "3": Gone.EVICTED}
    directory.report(change("a", 1, label(1)), NOW)
    assert nodes_of(directory, label(1)) == ("a",)
    assert directory.faults() == []


def test_copies_are_ordered_once_and_no_more_when_they_are_there():
    directory = directory_of(copies=2)
    for node in "bc":
        directory.report(everything(node), NOW)
    (order,) = directory.report(everything("a", label(1)), NOW).orders
    assert order.key == label(1).key
    assert order.target in "bc"
    assert directory.copied([label(1).key, label(2).key], NOW) == {label(1).key: False, label(2).key: False}
    assert directory.report(change("a", 0), NOW).orders == ()
    assert directory.report(change("b", 0), NOW).orders == ()
    late = NOW + ORDER_SECONDS + 1
    for node in "bca":
        directory.report(everything(node, *[label(1)] * (node == "a")), late)
    assert directory.report(everything("a", label(1)), late + ORDER_SECONDS + 1).orders == ()  # b and c were silent
    for node in "bc":
        directory.report(everything(node), late + ORDER_SECONDS + 1)
    assert directory.report(everything("a", label(1)), late + ORDER_SECONDS + 1).orders == (order,)
    directory.report(everything(order.target, label(1)), late + ORDER_SECONDS + 2)
    assert directory.copied([label(1).key], late + ORDER_SECONDS + 2) == {label(1).key: True}
    assert directory.report(everything("a", label(1)), late + ORDER_SECONDS + 2).orders == ()


def test_what_is_owed_and_since_when_can_be_told():
    directory = directory_of(copies=2)
    directory.report(everything("a", label(1), label(2)), NOW)
    assert directory.arrears(NOW) == (0, 0.0)  # there is no second node
    directory.report(everything("b"), NOW + 1)
    directory.report(everything("a", label(1), label(2)), NOW + 2)
    assert directory.arrears(NOW + 3) == (2 * 4096, 2.0)
    directory.report(everything("b", label(1)), NOW + 3)
    directory.report(everything("a", label(1), label(2), label(3)), NOW + 3)
    assert directory.arrears(NOW + 4) == (2 * 4096, 3.0)
    directory.report(everything("b", label(1), label(2), label(3)), NOW + 4)
    assert directory.arrears(NOW + 4) == (0, 0.0)


def test_a_copy_that_was_evicted_or_declined_is_not_asked_for_again_but_one_that_died_is():
    directory = directory_of(copies=2)
    directory.report(everything("b"), NOW)
    (order,) = directory.report(everything("a", label(1)), NOW).orders
    directory.report(change("b", 0, label(1)), NOW)
    directory.report(change("b", 1, removed=[(label(1).key, Gone.EVICTED)]), NOW)
    assert directory.report(change("a", 0), NOW).orders == ()
    assert directory.report(everything("a", label(1), number=1), NOW).orders == ()
    directory.report(everything("b", born=2), NOW)
    assert directory.report(change("a", 1), NOW).orders == (order,)
    assert directory.report(change("a", 2, declined=[order]), NOW).orders == ()
    assert directory.copied([label(1).key], NOW) == {label(1).key: True}


def test_nothing_is_ordered_before_every_server_had_the_time_to_report():
    directory = directory_of(copies=2)
    directory.report(everything("b"), 1.0)
    assert directory.report(everything("a", label(1)), 1.0).orders == ()
    assert not directory.find("red", ["2"], 1.0).settled
    directory.report(everything("c", label(1)), 1.0)
    assert directory.copied([label(1).key], 1.0) == {label(1).key: False}
    for node in "abc":
        reply = directory.report(everything(node, *[label(1)] * (node != "b")), NOW)
        assert reply.orders == ()
    assert directory.copied([label(1).key], NOW) == {label(1).key: True}


def test_the_durable_tier_gets_what_nodes_have_and_gives_nothing_back_by_itself():
    directory = directory_of(copies=1)
    directory.report(everything(DURABLE, label(9)), NOW)
    assert directory.report(everything("a", label(1)), NOW).orders == (Order(label(1).key, DURABLE),)
    assert nodes_of(directory, label(9)) == (DURABLE,)
    directory.report(everything(DURABLE, label(9), label(1)), NOW)
    directory.report(change("a", 0, label(9)), NOW)
    assert nodes_of(directory, label(9)) == ("a", DURABLE)
    assert directory.report(everything("b"), NOW).orders == ()
    assert directory.copied([label(1).key, label(9).key], NOW) == {label(1).key: True, label(9).key: True}


def test_copies_go_to_other_nodes_with_room_first_and_spread_over_them():
    hosts = [Host(node, 10**6) for node in "abcd"]
    chosen = {targets(label(i), ["a"], hosts, 2)[0] for i in range(40)}
    assert chosen == set("bcd")
    assert targets(label(1), ["a"], hosts[::-1], 3) == targets(label(1), ["a"], hosts, 3)
    full = [Host("b", 4096), *hosts[2:]]
    assert "b" not in {targets(label(i), ["a"], full, 2)[0] for i in range(40)}
    assert targets(label(1), ["a"], [Host("b", 0)], 2) == ["b"]
    assert targets(label(1), ["a", "b"], hosts, 2) == []
    assert targets(label(1), ["a"], hosts[:1], 3) == []
    assert targets(label(1), [DURABLE], hosts, 2) == []


def test_what_one_node_evicted_goes_to_another_that_joins_and_never_back():
    directory, chunks = directory_of(copies=2), [label(i) for i in range(12)]
    for node in "ab":
        directory.report(everything(node, *chunks), NOW)
    directory.report(change("b", 0, removed=[(one.key, Gone.EVICTED) for one in chunks]), NOW)
    directory.report(everything("c"), NOW)
    orders = directory.report(change("a", 0), NOW).orders
    assert {order.key for order in orders} == {one.key for one in chunks}
    assert {order.target for order in orders} == {"c"}
