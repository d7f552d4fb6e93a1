"""Who may answer to a model name: of all deployments of the fleet that claim one, the oldest.

Gateways route by `servedModelName` over all namespaces, so a name has one holder in the fleet. Age is the creation time, then
namespace and name, so everybody who knows the same deployments names the same holder; gateways apply the same rule.
"""

from __future__ import annotations

from collections.abc import Iterable

from rkfleet.kinds.deployment import ModelDeployment

__all__ = ["find_holder", "served_name"]


def served_name(deployment: ModelDeployment) -> str:
    """Return the name that clients ask for: `spec.servedModelName`, by default the deployment's own."""
    return deployment.spec.served_model_name or deployment.metadata.name


def find_holder(deployment: ModelDeployment, claimants: Iterable[ModelDeployment]) -> ModelDeployment:
    """Return the deployment that holds the name which `deployment` claims: itself, or an older claimant.

    Args:
        deployment: Who asks.
        claimants: Deployments that may claim the same name; others are passed over, as are those being deleted.
    """
    name = served_name(deployment)
    rivals = (one for one in claimants if served_name(one) == name and not one.metadata.deletion_timestamp)
    return min((deployment, *rivals), key=lambda one: (one.metadata.creation_timestamp, one.metadata.namespace, one.metadata.name))
