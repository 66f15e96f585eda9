"""The sentences of docs/security.md that say what somebody cannot do, and the tests that try.

A key is a sentence of the page, as it stands there but for line breaks; tests/style/test_security_page.py compares both ways.
"""

from __future__ import annotations

from typing import Final

#: Section -> sentence -> the tests that try it.
SENTENCES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "A stranger on the internet": {
        "It gets plain STUN answers and, where it is on, the open directory, each of these at most once a "
        "second when the answer is longer than the question.": (
            "tests/unit/rendezvous/test_server_stun.py::test_stun_answers_one_a_second_per_ipv4_address_or_ipv6_slash_64",
            "tests/unit/rendezvous/test_server_stun.py::test_the_open_directory_is_off_by_default_bounded_and_fits_into_a_kilobyte",
        ),
        "An answer that is no longer than its question is always given, so nobody can use up what others need.": (
            "tests/unit/rendezvous/test_server_stun.py::test_a_flood_of_forged_sources_is_limited_as_a_whole_and_leaves_no_state",
        ),
        "The server never sends more bytes to a forged address than were sent in its name, but for those two rationed answers.": (
            "tests/unit/rendezvous/test_server.py::test_the_unproven_get_a_cookie_no_state_and_fewer_bytes_than_they_sent",
            "tests/unit/rendezvous/test_server.py::test_what_strangers_send_into_a_channel_goes_nowhere_and_hints_never_amplify",
        ),
        "To an address that proved itself once and then fell silent it sends no more than it got from there.": (
            "tests/unit/rendezvous/test_pushes.py::test_posts_to_a_deaf_session_are_not_repeated_beyond_what_it_sent_itself",
            "tests/unit/rendezvous/test_pushes.py::test_dialing_deaf_listeners_again_and_again_sends_them_no_more_than_they_sent",
        ),
        "It cannot list codes.": (
            "tests/unit/rendezvous/test_answers.py::test_who_asks_for_each_number_by_name_learns_no_more_than_by_wrong_claims",
            "tests/unit/rendezvous/test_answers.py"
            "::test_who_draws_numbers_and_gives_them_back_does_not_learn_the_others_by_what_is_missing",
        ),
        "It cannot fill a table for everybody.": (
            "tests/unit/test_prefixes.py::test_the_last_tenth_is_for_newcomers",
            "tests/unit/rendezvous/test_shares.py"
            "::test_two_meet_and_are_relayed_though_a_hundred_sites_take_all_rooms_that_they_get",
            "tests/unit/rendezvous/test_shares.py::test_a_home_cannot_fill_the_relay_by_restoring_channels_that_never_were",
            "tests/driver/test_tls_flood.py::test_a_door_that_strangers_of_many_sites_fill_lets_a_session_in",
        ),
        "When all rooms are taken, an address that came late and holds many gives one back to an address that "
        "wants few, so a crowd of some thousand sites keeps nobody out who has a few peers.": (
            "tests/unit/rendezvous/test_shares.py"
            "::test_two_meet_and_are_relayed_though_a_hundred_sites_take_all_rooms_that_they_get",
            "tests/unit/rendezvous/test_shares.py::test_when_there_are_no_more_rooms_one_address_gets_half_of_what_is_usual",
        ),
        "It cannot take all of a server's processor time.": (
            "tests/unit/rendezvous/test_load.py::test_a_forged_flood_leaves_those_their_share_who_are_known_here",
            "tests/unit/rendezvous/test_load.py::test_those_who_guess_at_codes_take_no_time_from_the_others",
            "tests/unit/rendezvous/test_load.py::test_addresses_that_have_proven_themselves_and_flood",
            "tests/unit/rendezvous/test_load.py::test_a_flood_without_a_proof_takes_no_time_from_the_others",
            "tests/unit/rendezvous/test_load.py::test_a_flood_of_questions_takes_no_time_from_the_others",
            "tests/unit/rendezvous/test_pacing.py::test_many_pairs_of_one_prefix_that_flood_are_held_together",
        ),
        "It cannot make the log grow without end: a few lines a second at most are written at length.": (
            "tests/unit/rendezvous/test_strangers.py::test_the_log_grows_by_a_few_lines_a_second_whatever_strangers_send",
        ),
    },
    "The rendezvous server, or whoever has taken it over": {
        "A client greets at most 32 addresses a minute on such a word, each four times with 512 bytes, and gives up where nobody "
        "answers; the same rule holds.": (
            "tests/unit/rendezvous/test_following.py"
            "::test_a_server_can_make_us_greet_so_many_addresses_a_minute_a_few_times_each",
            "tests/unit/rendezvous/test_following.py::test_addresses_that_a_server_may_not_name_are_not_greeted",
        ),
        "It sees the nameplate (the number) of a code, never the words.": (
            "tests/unit/pairing/test_pake.py::test_another_code_or_nameplate_gives_another_psk_and_the_confirmation_tells",
            "tests/unit/pairing/test_pake.py::test_one_attempt_takes_one_message",
        ),
        "If it names a third party on the internet, each client that wants to meet that peer sends at "
        "most 300 checks to that host and one attempt at random ports in an hour: 2,400 datagrams of 57 "
        "bytes, or 8,000 if the server also withholds what it owes the peer, or shows it ports that are not its own.": (
            "tests/sim/test_safe_punching.py::test_a_lying_server_aims_nobody_at_a_third_party",
            "tests/unit/nat/test_agent_budget.py::test_all_peers_together_send_a_silent_host_few_checks",
        ),
        "A server on the internet cannot name an address of a local network, and nobody can name a port "
        "below 1024 or one of a service that answers strangers.": (
            "tests/unit/test_scope.py::test_an_address_of_a_local_network_is_no_business_of_somebody_on_the_internet",
            "tests/unit/nat/test_candidate.py::test_ports_of_services_that_answer_strangers_are_refused",
        ),
        "It can name a second address of its own, to which a client sends small questions (at most 512 "
        "bytes), four times a minute at most.": (
            "tests/unit/rendezvous/test_client_and_server.py"
            "::test_a_server_cannot_make_us_flood_or_enter_the_lan_by_naming_a_second_address",
        ),
        "It cannot hand out codes by itself to guess more often: a fresh one is made only when the "
        "exposing side has asked, and after wrong guesses it waits before it asks.": (
            "tests/unit/node/test_forgeries.py::test_a_server_that_hands_out_codes_unasked_cannot_guess_any_faster",
        ),
        "It cannot read, change or make up what the two say after that.": (
            "tests/unit/crypto/test_noise.py::test_a_forged_message_changes_nothing_and_the_genuine_one_still_completes",
            "tests/unit/connection/test_opening.py::test_a_forged_datagram_costs_itself_alone",
        ),
        "It cannot come between peers that remember each other: they hold keys that it never saw.": (
            "tests/unit/node/test_hostile.py::test_a_replayed_init_makes_nothing",
            "tests/unit/node/test_forgeries.py::test_what_a_handshake_proves_is_where_the_answer_went_and_never_a_forged_source",
        ),
        "It cannot keep old keys in use by dropping handshakes of a connection that it relays: the "
        "connection stops after 180 s at most, and both people are told.": (
            "tests/sim/test_keys.py::test_who_drops_handshakes_alone_cannot_keep_old_keys_in_use_and_both_people_are_told",
        ),
    },
    "The store of a fleet, or whoever reads and writes there": {
        "Who writes there without the key cannot make a record or a note: each is sealed for its place.": (
            "tests/unit/rendezvous/fleet/test_seal.py::test_a_record_is_good_in_its_place_and_under_its_key_only",
            "tests/unit/rendezvous/fleet/test_members.py::test_records_of_somebody_else_or_in_another_place_are_no_servers",
            "tests/unit/rendezvous/fleet/test_notes.py::test_a_note_under_another_key_or_from_another_channel_is_dropped",
            "tests/sim/test_fleet.py::test_a_store_that_writes_what_it_likes_sends_nobody_anywhere",
        ),
        "Nobody waits for the store longer than a second.": (
            "tests/unit/rendezvous/fleet/test_codes.py::test_a_claim_waits_for_the_store_no_longer_than_a_second",
        ),
    },
    "Someone on the path between two peers, or between a peer and the server": {
        "Whoever sits on it can do what the server can do, and no more.": (
            "tests/unit/rendezvous/test_client_and_server.py::test_a_forged_answer_or_push_from_off_the_path_is_dropped",
        ),
        "They can tell handshakes from data by their first bytes, and drop the handshakes: then data "
        "stops after 180 s at most, both people are told, and the direct path gets its keys over the "
        "relay.": (
            "tests/sim/test_keys.py::test_who_drops_handshakes_alone_cannot_keep_old_keys_in_use_and_both_people_are_told",
            "tests/sim/test_keys.py::test_a_direct_path_without_handshakes_gets_its_keys_over_the_relay",
        ),
        "A handshake that was recorded is answered by a challenge that only the peer can read; after a "
        "restart of the peer, which forgets the last timestamp, it gets one answer that nobody without "
        "the keys can use.": (
            "tests/unit/node/test_hostile.py::test_a_replayed_init_makes_nothing",
            "tests/unit/crypto/test_handshake.py"
            "::test_a_challenge_comes_back_in_the_next_init_and_only_the_pair_can_have_made_it",
        ),
    },
    "The router at home, or who answers in its place": {
        "That opens the port to strangers, see above, for as long as the program runs; after a crash, for an hour at most.": (
            "tests/unit/nat/test_portmap.py::test_each_protocol_alone_maps_the_port_and_takes_it_back",
        ),
        "Of those that a neighbour names, two at most are tried.": (
            "tests/driver/test_upnp.py::test_so_many_places_of_others_are_asked_for_at_the_gateway",
            "tests/driver/test_upnp.py::test_whatever_address_an_answer_comes_from_and_names_the_gateway_alone_is_asked",
        ),
        "The paired peer then checks it as it would any candidate: a host that sends nothing authentic "
        "gets 300 checks an hour at most, and no random ports are tried there.": (
            "tests/unit/nat/test_agent_budget.py::test_all_peers_together_send_a_silent_host_few_checks",
            "tests/unit/nat/test_upnp.py::test_of_an_address_that_an_answer_names_only_the_port_and_the_path_are_read",
        ),
    },
    "A paired peer": {
        "Streams that it opens and drops are charged to it as well: they take about a tenth of the processor.": (
            "tests/unit/node/test_fairness.py::test_whoever_opens_streams_and_drops_them_has_a_tenth_of_the_processor",
            "tests/unit/node/test_fairness.py::test_the_endpoint_charges_streams_to_whoever_opens_them",
        ),
        "Whoever answers for that name cannot lead the peer back to this machine: loopback, link-local, "
        "metadata services and this machine's own addresses are left out, unless the grant itself names "
        "this machine.": ("tests/driver/test_forward_names.py::test_a_name_does_not_lead_to_this_machine_or_to_what_is_nobodys",),
        "A Unix socket is reached by the name that was given to it, or by the very path that was granted where it has "
        "none; another path to it is refused.": (
            "tests/driver/test_forward_unix.py::test_a_path_is_reached_by_whom_it_was_granted_to_and_by_nobody_else",
        ),
        "Loopback, link-local, metadata services, reserved networks and this machine's own addresses are refused, also "
        "where NAT64 or 6to4 would carry it there, unless the grant names just such a network or that one address.": (
            "tests/driver/test_socks.py::test_a_network_that_is_shared_reaches",
            "tests/driver/test_socks.py::test_everything_shared_is_still_nothing_special",
            "tests/driver/test_socks.py::test_localhost_is_loopback_for_everybody",
        ),
        "Without a network for the port that is asked for, no name is looked up, so whoever has none cannot use this "
        "machine's resolver; at most 16 names are looked up at once for such peers.": (
            "tests/driver/test_socks.py::test_without_a_network_no_name_is_looked_up",
            "tests/driver/test_socks.py::test_dead_names_take_no_more_than_their_share_of_threads",
        ),
        "It listens on loopback, unless an address was allowed; anything else that the peer asks for is refused.": (
            "tests/driver/test_forward_remote.py::test_where_it_was_not_allowed_nobody_listens",
            "tests/driver/test_forward_remote.py::test_what_connects_there_reaches_a_program_here_over_loopback_alone",
        ),
        "The other way round, the exposing side reaches programs of the connecting side only where that has asked for it "
        "(`connect --remote`): a connection to anything else is refused.": (
            "tests/driver/test_forward_remote.py::test_who_has_asked_for_nothing_is_connected_to_nothing",
        ),
        "The peer may have the link measured (`ptunnel bench`), whatever it was granted: either side "
        "sends zeros or counts what arrives, one measurement at a time, of at most 30 seconds and 16 GiB, "
        "and 64 GiB an hour.": (
            "tests/unit/ports/test_allowance.py::test_one_at_a_time_and_an_hours_share_over_all_links",
            "tests/unit/ports/test_open.py::test_all_that_we_measure_is_within_those_bounds",
        ),
        "It cannot go on to an address that the peer has left: sequence numbers are skipped now and then, "
        "so nobody can acknowledge what did not arrive, and a path that only sends is challenged again "
        "each minute.": (
            "tests/fuzz/test_connection_fuzz.py::test_optimistic_acks_of_everything_raise_no_more_than_our_own_rate",
        ),
        "It names at most 16 at a time.": ("tests/unit/nat/test_agent.py::test_a_peer_that_names_too_many_is_cut",),
        "A host that has sent nothing authentic gets at most 300 checks and one attempt at random ports "
        "(2,400, or 8,000 if the peer says that it could open few sockets, or that its router draws from few "
        "ports) in an hour, whoever named it.": (
            "tests/unit/nat/test_agent_budget.py::test_all_peers_together_send_a_silent_host_few_checks",
            "tests/sim/test_safe_punching.py::test_an_authenticated_liar_cannot_make_us_flood_a_third_party",
        ),
        "Where your router makes a mapping for each destination, such probes fill its table: 8,000 mappings "
        "at most in one attempt, half of a block of ports unless one port is seen to serve two, and 96 at "
        "most beyond the last that it is known to have made.": (
            "tests/unit/nat/test_quota.py::test_no_more_than_so_many_mappings_are_made_beyond_the_last_confirmed_one",
            "tests/sim/test_carriers.py::test_of_a_block_whose_ports_serve_one_mapping_each_half_is_left",
        ),
        "Refused are: loopback (except on one machine), multicast, broadcast, link-local, the metadata "
        "services of clouds, also where NAT64, 6to4 or Teredo would carry it there, ports below 1024, and "
        "ports of services that answer strangers with more than they were asked.": (
            "tests/unit/nat/test_candidate.py::test_addresses_that_no_check_may_go_to",
            "tests/unit/nat/test_candidate.py::test_ports_of_services_that_answer_strangers_are_refused",
            "tests/unit/nat/test_candidate.py::test_loopback_in_any_dress_is_refused_unless_both_are_on_one_machine",
            "tests/driver/test_udp_sockets.py::test_nothing_goes_to_the_broadcast_address_of_a_network_of_ours",
        ),
        "Nothing but those datagrams goes to an address that has not answered one, and what answers "
        "cannot be made up: neither a forged sender's address nor the numbers of earlier checks help.": (
            "tests/sim/test_safe_punching.py::test_checks_go_only_where_the_peer_said_or_where_it_answered_from",
            "tests/driver/test_hostile_peers.py::test_who_has_seen_many_path_challenges_cannot_foretell_the_next",
        ),
        "Your own LAN is not refused, since the peer may be in it.": (
            "tests/unit/nat/test_candidate.py::test_lans_carriers_and_documentation_prefixes_are_tried",
        ),
        "It can cost you processor time in proportion to the bytes it sends, about 2 µs a byte at most; "
        "beyond its share of the processor its datagrams are dropped unopened, and the other links go on.": (
            "tests/unit/connection/test_frame_cost.py::test_a_frame_costs_its_bytes_with_two_thousand_streams_open",
            "tests/unit/node/test_fairness.py::test_a_costly_trickle_does_not_keep_the_others_waiting",
        ),
        "It cannot use up your relay channels: whoever dials pays for them.": (
            "tests/unit/rendezvous/test_shares.py::test_who_dials_a_listener_pays_for_the_channels",
            "tests/unit/node/test_channels.py::test_a_server_with_limits_keeps_room_for_others_whatever_one_peer_dials",
        ),
        "A name that it suggests never replaces one that you have, is stripped of control and direction "
        "characters, and may not look like a code.": ("tests/unit/state/test_peers.py::test_a_newcomer_never_takes_a_name",),
    },
    "A member of your room": {
        "Nothing bound to 127.0.0.1 is reached, and nothing behind you but those ports of containers: no "
        "other network of yours, no other interface's address, and nobody is forwarded for.": (
            "tests/netns/test_tun_wall.py::test_a_member_reaches_nothing_behind_this_machine_but_what_it_publishes",
            "tests/netns/test_lan_traffic.py::test_nobody_reaches_another_members_other_networks",
            "tests/netns/test_tun_reflector.py::test_a_host_that_forwards_for_others_does_not_for_the_lan",
        ),
        "Refused, with a counter each: source routes, routing headers, jumbograms, IGMP, MLD and "
        "neighbour discovery, redirects and router advertisements, answers of DHCP, and ICMP errors about "
        "packets that you never sent to that member.": (
            "tests/unit/ip/test_filter.py::test_a_member_does_not_reconfigure_our_host",
            "tests/unit/ip/test_filter.py::test_nothing_goes_on_through_us",
            "tests/unit/ip/test_filter.py::test_a_member_tells_errors_only_of_what_we_sent_to_it",
        ),
        "Refused as well: packets inside of packets and protocols of routers, by their IP protocol and by "
        "their assigned UDP port (VXLAN, GENEVE, GUE, L2TP, GTP, AMT, LISP, GRE and MPLS in UDP; RIP, "
        "LDP, HSRP, GLBP, OLSR, BFD, Babel; PTP).": (
            "tests/unit/ip/test_filter.py::test_tunnels_routers_and_clocks_over_udp_are_refused_as_their_sisters_are",
        ),
        "A tunnel device that was given another port, and FOU, which has none of its own, cannot be told apart.": (
            "tests/unit/ip/test_filter.py::test_where_games_send_nothing_is_refused",
        ),
        "It cannot remove, admit or rename anybody.": (
            "tests/sim/test_lan.py::test_a_member_cannot_remove_refuse_or_admit_anybody",
        ),
        "That alone lets nobody in, because every connection also needs the static key of a member; for "
        "the same reason the member can neither read what two others say to each other nor pass for one "
        "of them.": (
            "tests/unit/room/test_roster.py::test_the_psk_of_a_pair_is_the_same_from_both_ends_and_another_in_each_epoch",
        ),
        "It sees whose that is, how much and when, as a server does that relays, and cannot read it: the two shake hands "
        "with each other, through it.": (
            "tests/sim/test_lan_detours.py::test_whoever_carries_sees_what_two_others_have_sealed_and_nothing_of_it",
            "tests/sim/test_lan_detours.py::test_the_handshake_of_two_that_never_met_goes_by_way_of_a_member",
        ),
        "It carries for 64 pairs, 16 of one member, at 1 MiB a second; nobody carries who was not told to.": (
            "tests/sim/test_lan_detours.py::test_nobody_carries_who_was_not_told_to",
        ),
        "While the creator is away nobody is removed.": (
            "tests/unit/room/test_room.py::test_only_the_creator_removes_and_not_itself_or_nobody",
        ),
    },
    "The creator of a room that you join": {
        "They cannot read what two members say to each other.": (
            "tests/unit/room/test_roster.py::test_the_psk_of_a_pair_is_the_same_from_both_ends_and_another_in_each_epoch",
        ),
    },
    "Who takes over the process with the LAN interface": {
        "Started by root it is still root's user: it can write root's files, and so plant what root runs "
        "later, but configure no network, open no raw socket, trace nobody else's process and mount "
        "nothing.": ("tests/netns/test_tun_host.py::test_the_interface_is_there_and_the_privilege_is_gone",),
        "Rules of nf_tables see to that, which go when both processes have ended, and which nobody else's flush takes away.": (
            "tests/netns/test_tun_wall.py::test_the_rules_go_with_the_last_process_that_holds_their_socket",
            "tests/netns/test_tun_wall.py::test_a_member_reaches_nothing_behind_this_machine_but_what_it_publishes",
        ),
        "Its command has no capability, reaches no network but the tunnel, and cannot change it; but it "
        "runs as you, with your files and Unix sockets.": (
            "tests/netns/test_tun_exec.py::test_a_command_sees_the_tunnel_and_nothing_else",
        ),
    },
    "Other users of the same computer": {
        "One that listens at `unix:/PATH` can be opened by nobody but its owner and root.": (
            "tests/driver/test_forward_unix.py::test_what_is_made_is_its_owners_alone_and_is_gone_at_the_end",
        ),
        "They cannot read PTUNNEL_HOME (files of mode 0600 in a directory of mode 0700; a directory that "
        "others may write to is refused) nor speak to the control socket (mode 0600, and the kernel is "
        "asked whose process it is).": (
            "tests/unit/state/test_home.py::test_nobody_else_can_read_what_was_made",
            "tests/unit/state/test_home.py::test_a_home_that_others_may_write_to_is_refused_with_the_command_that_helps",
        ),
        "A conversation on the control socket cannot end the process that serves it.": (
            "tests/driver/test_walls_forward.py::test_a_question_that_meets_a_fault_is_answered_so_and_the_service_goes_on",
        ),
        "A web page cannot read figures that are for this computer alone by giving its own name the address 127.0.0.1.": (
            "tests/driver/test_metrics.py::test_only_the_figures_are_there_and_only_under_a_name_of_this_machine",
        ),
        "Nobody keeps Prometheus from them by connections that are held open.": (
            "tests/driver/test_metrics.py::test_silent_connections_keep_prometheus_out_neither_by_number_nor_for_long",
        ),
    },
    "Who finds the page of `up`": {
        "Where `page` is set, `ptunnel up` shows a page to the browsers of this machine, at a loopback address or a Unix "
        "socket; an address that other machines reach is refused.": (
            "tests/unit/page/test_place.py::test_anything_else_is_refused_with_one_sentence",
        ),
        "Nobody without the token is shown what this home holds, or has anything done.": (
            "tests/unit/page/test_gate.py::test_nothing_without_the_token",
            "tests/driver/test_page.py::test_nobody_else_learns_or_does_anything",
            "tests/driver/test_page.py::test_the_bare_page_and_its_files_are_for_everybody_and_hold_nothing_of_the_home",
        ),
        "The address that `ptunnel page` prints has it behind a `#`, which a browser sends to nobody.": (
            "tests/driver/test_page.py::test_the_token_is_in_no_address_that_is_sent_nor_in_a_refusal",
            "tests/programs/test_page.py::test_the_token_leaves_the_address_and_reaches_no_other_port",
        ),
        "Another port of this machine cannot read it.": (
            "tests/programs/test_page.py::test_the_token_leaves_the_address_and_reaches_no_other_port",
        ),
        "Another site cannot have the browser of the owner ask for anything but the bare page.": (
            "tests/unit/page/test_gate.py::test_another_site_gets_nothing_though_it_had_the_token",
            "tests/unit/page/test_gate.py::test_a_link_from_anywhere_leads_to_the_bare_page_but_no_frame_does",
            "tests/programs/test_page.py::test_another_site_in_the_same_browser_gets_nothing",
        ),
        "Requests that come under another name than the one that was set (DNS rebinding), or from another origin, are "
        "refused, though they had the token.": (
            "tests/unit/page/test_gate.py::test_a_site_that_rebinds_its_name_to_this_machine_gets_nothing",
            "tests/programs/test_page.py::test_another_site_in_the_same_browser_gets_nothing",
        ),
        "The name of a peer cannot become markup: the browser is told to run no code but the page's own, and to make no "
        "markup from text.": (
            "tests/driver/test_page.py::test_every_answer_forbids_foreign_code_frames_and_copies",
            "tests/programs/test_page.py::test_what_a_peer_calls_itself_is_text",
        ),
        "Whoever connects without the token gives way to a newcomer when all places are taken, and so cannot keep "
        "the owner out.": (
            "tests/driver/test_page_hostile.py::test_those_without_the_token_give_way_and_those_with_it_do_not",
            "tests/driver/test_page_hostile.py::test_a_thousand_connections_keep_out_nobody_who_has_the_token",
        ),
    },
    "Whoever copies PTUNNEL_HOME": {
        "What was recorded before cannot be read: ephemeral keys are gone.": (
            "tests/unit/crypto/test_handshake.py::test_xx_introduces_two_strangers_who_share_a_psk",
        ),
    },
    "Guesses at codes": {
        "So a code that is left open is guessed at 144 times a day at most; one of those days in 29,000 "
        "would see a right guess.": ("tests/unit/node/test_meeting.py::test_guessing_is_slowed_down",),
        "The server makes them random and sparse: at most one in ten of the numbers that it gives is in "
        "use, and it gives one in sixteen.": (
            "tests/unit/rendezvous/test_server.py::test_nameplates_are_random_and_grow_with_the_crowd",
            "tests/unit/rendezvous/test_answers.py"
            "::test_a_server_gives_a_sixteenth_of_the_numbers_and_two_servers_hardly_ever_the_same",
        ),
        "A number that this server never gives is another server's: that claim is answered as such and counts as nothing.": (
            "tests/unit/rendezvous/test_answers.py::test_a_claim_that_belongs_to_another_server_is_told_so_and_counts_for_nobody",
        ),
        "A code of the wrong kind (a room's in `connect`, an exposer's in `lan join`) is refused before "
        "anything is sent, spent or stored.": (
            "tests/unit/node/test_purposes.py::test_the_wrong_kind_of_code_is_refused_before_anything_is_sent",
        ),
    },
    "What the server learns about who meets whom": {
        "It learns which addresses meet; that cannot be helped in a design where it introduces them.": (
            "tests/unit/rendezvous/test_server_stun.py::test_the_open_directory_lists_the_others_newest_first_each_once",
        ),
        "It lists nobody else.": (
            "tests/unit/rendezvous/test_server_stun.py::test_the_open_directory_lists_the_others_newest_first_each_once",
        ),
    },
    "Post-quantum secrecy": {
        "So whoever records today and has a quantum computer later breaks X25519, and still cannot read what was carried.": (
            "tests/unit/node/test_hybrid.py::test_a_pair_keeps_a_secret_that_is_not_of_elliptic_curves_before_anything_is_carried",
            "tests/unit/node/test_hybrid.py::test_nothing_but_the_control_stream_leaves_before_the_step_is_done",
        ),
        "There is no silent way back: once a pair has taken the step, a connection without it is refused "
        "with a sentence, and a new pairing with an older program as well.": (
            "tests/unit/node/test_hybrid.py::test_there_is_no_silent_way_back",
            "tests/unit/node/test_hybrid.py::test_a_pairing_with_an_older_version_of_a_peer_that_could_do_better_is_refused",
        ),
    },
}
