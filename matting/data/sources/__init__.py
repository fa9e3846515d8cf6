"""Where photos and pairs come from: tables that name them, folders, and tar shards that hold them."""
