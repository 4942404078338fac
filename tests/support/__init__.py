"""What tests share: models, groups, servers, launched runs."""
