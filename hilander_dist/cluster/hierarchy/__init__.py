"""From trees and partitions to nested levels of clusters."""
