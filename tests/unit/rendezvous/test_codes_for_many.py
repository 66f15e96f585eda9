"""Nameplates that many may claim: at the server and, by a client, for as long as its owner wants."""

from __future__ import annotations

from tests.unit.rendezvous.world import World
from tunnel.rendezvous import messages
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import RefusalCode
from tunnel.units import Address

A = Address("198.18.0.1", 1000)
CLAIMS = 50


def opened(world: World, claims: int = CLAIMS) -> int:
    """A nameplate that host 0 owns."""
    owner = world.hosts[0] if world.hosts else world.host("owner")
    owner.client.allocate(world.now, claims)
    world.run(20, until=lambda: bool(owner.of(messages.Allocated)))
    return int(owner.of(messages.Allocated)[-1].nameplate)


def test_many_claim_one_nameplate_each_with_a_mailbox_and_channel_of_its_own() -> None:
    world = World()
    nameplate = opened(world)
    joiners = [world.host(f"joiner{number}") for number in range(5)]
    for number, joiner in enumerate(joiners):
        joiner.client.claim(world.now, nameplate, b"%d" % number)
    world.run(5)
    received = world.hosts[0].of(messages.ClaimReceived)
    assert sorted(event.body for event in received) == [b"%d" % number for number in range(5)]
    assert len({event.mailbox for event in received}) == len({event.channel.channel for event in received}) == 5
    for event in received:
        world.hosts[0].client.post(world.now, event.mailbox, b"to " + event.body)
    world.run(2)
    assert [[post.body for post in joiner.of(messages.Posted)] for joiner in joiners] == [[b"to %d" % n] for n in range(5)]


def test_claims_run_out_and_come_back_with_the_renewal() -> None:
    world = World()
    nameplate = opened(world, claims=2)
    owner, *joiners = world.hosts[0], *(world.host(f"joiner{number}") for number in range(4))
    for joiner in joiners[:3]:
        joiner.client.claim(world.now, nameplate, b"x")
        world.run(2)
    assert [len(joiner.of(messages.ClaimAccepted)) for joiner in joiners] == [1, 1, 0, 0]
    assert [event.code for event in joiners[2].of(messages.Refused)] == [RefusalCode.SPENT]
    owner.client.renew(world.now, nameplate)
    world.run(2)
    joiners[3].client.claim(world.now, nameplate, b"x")
    world.run(2)
    assert joiners[3].of(messages.ClaimAccepted)


def test_a_renewed_nameplate_does_not_expire_and_one_that_is_not_does() -> None:
    world = World()
    nameplate = opened(world)
    owner, early, late = world.hosts[0], world.host("early"), world.host("late")
    for _ in range(6):
        world.run(200)
        owner.client.renew(world.now, nameplate)
    early.client.claim(world.now, nameplate, b"x")
    world.run(620)
    assert early.of(messages.ClaimAccepted)
    late.client.claim(world.now, nameplate, b"x")
    world.run(2)
    assert [event.code for event in late.of(messages.Refused)] == [RefusalCode.UNKNOWN_NAMEPLATE]


def test_a_nameplate_for_one_is_not_renewed_and_nobody_elses_is_either() -> None:
    world = World()
    nameplate = opened(world, claims=1)
    owner, other = world.hosts[0], world.host("other")
    before = world.server.registry.nameplates[nameplate].expires_at
    world.run(100)
    owner.client.renew(world.now, nameplate)
    world.run(2)
    assert world.server.registry.nameplates[nameplate].expires_at == before
    world.ask(A, messages.Allocate(nameplate, 9), session=b"s" * 16, cookie=world.cookie(A))
    assert world.server.registry.nameplates[nameplate].left == 1
    assert not other.of(messages.Allocated)


def test_one_address_holds_few_claims_at_once_and_whoever_is_one_too_many_comes_back_by_itself() -> None:
    world = World(config=ServerConfig(claims_at_once=3, claims_at_once_per_address=2))
    nameplate = opened(world)
    neighbours = [world.host(f"neighbour{n}") for n in range(3)]
    for number, each in enumerate(neighbours):
        each.addresses = {socket: Address("198.18.9.9", 6000 + number) for socket in each.addresses}
    elsewhere, last = world.host("elsewhere"), world.host("last")
    for each in (*neighbours, elsewhere, last):
        each.client.claim(world.now, nameplate, b"x")
        world.run(1)
    assert [len(each.of(messages.ClaimAccepted)) for each in (*neighbours, elsewhere, last)] == [1, 1, 0, 1, 0]
    assert not neighbours[2].of(messages.Refused)
    for each in neighbours[:2]:
        each.client.leave_mailbox(world.now, each.of(messages.ClaimAccepted)[0].mailbox)
    world.run(5)
    assert neighbours[2].of(messages.ClaimAccepted)
    assert last.of(messages.ClaimAccepted)


def test_one_address_claims_slowly_however_fast_it_gives_up() -> None:
    world = World(config=ServerConfig(claim_burst=4, claim_rate=0.5))
    nameplate = opened(world)
    stranger = world.host("stranger")
    for _ in range(100):
        stranger.client.claim(world.now, nameplate, b"x")
        world.run(0.2)
        for event in stranger.of(messages.ClaimAccepted):
            stranger.client.leave_mailbox(world.now, event.mailbox)
    assert len(stranger.of(messages.ClaimAccepted)) <= 4 + 20 * 0.5 + 1


def test_an_owner_who_never_hears_of_a_claim_has_it_back() -> None:
    world = World()
    nameplate = opened(world, claims=2)
    owner, joiner = world.hosts[0], world.host("joiner")
    owner.is_deaf = True
    joiner.client.claim(world.now, nameplate, b"x")
    world.run(15)
    assert world.server.registry.nameplates[nameplate].left == 2
    assert not world.server.registry.nameplates[nameplate].claims


def test_after_a_restart_of_the_server_the_nameplate_is_for_many_again() -> None:
    world = World()
    nameplate = opened(world)
    world.start_server()
    world.run(30)
    assert world.server.registry.nameplates[nameplate].is_for_many
    world.hosts[0].client.release(world.now, nameplate)
    world.run(30)
    assert nameplate not in world.server.registry.nameplates


def test_a_release_counts_although_a_renewal_was_on_its_way() -> None:
    for seed in range(9):
        world = World(seed)
        world.loss, world.jitter = 0.3, 0.3
        nameplate = opened(world)
        owner = world.hosts[0]
        owner.client.renew(world.now, nameplate)
        owner.client.release(world.now, nameplate)
        world.run(30)
        owner.client.renew(world.now, nameplate)
        world.run(640)  # a renewal that was overtaken may have made it anew, once
        assert nameplate not in world.server.registry.nameplates


def test_in_a_room_with_guests_whoever_was_led_to_the_servers_own_host_may_wait_there() -> None:
    own = Address("198.18.0.1", 5000)
    for has_guests in (True, False):
        world = World(config=ServerConfig(own_hosts=frozenset({own.host}), has_guests=has_guests))
        nameplate = opened(world)
        guest, stranger = world.host("guest"), world.host("stranger")
        assert world.hosts[0].addresses[next(iter(world.hosts[0].addresses))].host == own.host
        guest.client.claim(world.now, nameplate, b"x")
        world.run(2)
        guest.client.listen(world.now, [b"g" * 16])
        stranger.client.listen(world.now, [b"s" * 16])
        world.run(2)
        refused = [[event.code for event in host.of(messages.Refused)] for host in (guest, stranger)]
        assert refused == ([[], [RefusalCode.DENIED]] if has_guests else [[RefusalCode.DENIED]] * 2)


def test_whoever_may_not_wait_yet_asks_again_as_soon_as_it_was_led_to_somebody() -> None:
    own = Address("198.18.0.1", 5000)
    world = World(config=ServerConfig(own_hosts=frozenset({own.host}), has_guests=True))
    owner, guest = world.host("owner"), world.host("guest")
    owner.client.listen(world.now, [b"o" * 16])
    guest.client.listen(world.now, [b"g" * 16])
    world.run(2)
    assert [event.code for event in guest.of(messages.Refused)] == [RefusalCode.DENIED]
    guest.client.dial(world.now, [b"o" * 16])
    world.run(2)
    assert b"g" * 16 in world.server.registry.rooms
