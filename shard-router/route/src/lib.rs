//! The routing mind: data group, key, slot, shard, data source.
