"""Every message that may cross a socket: the decoder's schema."""

from __future__ import annotations

from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.learning import (
    BatchReply,
    BatchRequest,
    Checkpointed,
    EvalReply,
    EvalRequest,
    Members,
    MembersRequest,
    Newcomers,
    Published,
)
from asyncrl.transport.messages.publishing import Done, Failed, JoinGroup, LeaveGroup, Stage, Switch
from asyncrl.transport.messages.rollouts import CompletionDone, GroupDone, Hello, LeaseFailed, LeaseGrant, Serving
from asyncrl.transport.messages.scaling import Drain, Drained, Gone, Scale, Scaled
from asyncrl.transport.messages.supervision import Alive, DumpStacks, EvalRow, Note, Stacks, Status, StepRow, Stop

Rollouts = Hello | Serving | LeaseGrant | CompletionDone | GroupDone | LeaseFailed | Ack
Learning = (
    MembersRequest
    | Members
    | Newcomers
    | BatchRequest
    | BatchReply
    | Published
    | Checkpointed
    | EvalRequest
    | EvalReply
)
Publishing = JoinGroup | LeaveGroup | Stage | Switch | Done | Failed
Supervision = Status | StepRow | EvalRow | Note | Stacks | Alive | DumpStacks | Stop
Scaling = Gone | Drain | Drained | Scale | Scaled
AnyMessage = Rollouts | Learning | Publishing | Supervision | Scaling
