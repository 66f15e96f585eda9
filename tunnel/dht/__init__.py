"""A client of the BitTorrent Mainline DHT.  Sans IO: bytes and instants in; datagrams and a deadline out."""
