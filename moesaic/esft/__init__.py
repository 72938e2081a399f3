"""Train some experts of a model and merge them back: score, select, park, train, shard, merge."""
