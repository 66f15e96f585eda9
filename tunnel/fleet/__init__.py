"""The store of a fleet: Redis or Valkey, as coredis speaks to it.  Imported by `ptunnel serve --fleet` alone."""
