"""What tests of the original say of themselves to its CI."""
