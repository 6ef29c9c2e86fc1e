package schemas

// The packages whose tests make evidence: an agent under real runtimes, an agent with
// real processes and BPF, a real spool with lines of a test, and the real witness with
// counters of a test, whose lines go to no spool.
const (
	runtimes = "tests/runtimes"
	agent    = "agent"
	spool    = "evidence/spool"
	witness  = "evidence/witness"
)

// Shown says which packages' tests show what, each time that all of them run. Others may
// show it too, by chance or by the machine's speed: see PROBITY_SEEN.
var Shown = map[string][]string{
	"line header":      {runtimes, agent, spool},
	"line envelope":    {runtimes, agent, spool},
	"line statement":   {runtimes, agent, spool},
	"line coverage":    {runtimes, agent, spool, witness},
	"line observation": {runtimes, agent, spool, witness},
	"line gap":         {runtimes, agent, spool, witness},

	"state hit":        {runtimes, agent, witness},
	"state armedNoHit": {runtimes, agent, spool, witness},
	"state partial":    {runtimes, agent, witness},
	"state notArmed":   {runtimes, agent, witness},

	"probe type uprobe":        {runtimes, agent, spool, witness},
	"probe type uretprobe":     {runtimes, witness},
	"probe type usdt":          {witness},
	"probe type fentry":        {witness},
	"probe type fexit":         {witness},
	"probe type rawTracepoint": {runtimes, agent, witness},
	"probe type tracepoint":    {witness},
	"probe type kprobe":        {witness},
	"probe type kretprobe":     {witness},

	"set exec":           {runtimes, agent, witness},
	"set libraries":      {runtimes, agent},
	"set syscalls":       {runtimes, witness},
	"set network":        {runtimes, witness},
	"set files":          {runtimes, agent, witness},
	"entry of exec":      {runtimes, agent},
	"entry of libraries": {runtimes, agent},
	"entry of network":   {runtimes, witness},
	"entry of files":     {runtimes, agent, witness},

	"scope node":   {runtimes, agent, spool, witness},
	"scope source": {runtimes, agent, witness},
	"scope run":    {runtimes, agent, spool, witness},
	"scope file":   {runtimes, witness},
	"scope site":   {agent, witness},

	"gap adopted":             {runtimes, agent, witness},
	"gap agentDown":           {runtimes, witness},
	"gap attributionLost":     {witness},
	"gap budgetDisarm":        {witness},
	"gap clockStep":           {agent},
	"gap coalesced":           {witness},
	"gap decodeError":         {witness},
	"gap fileChanged":         {runtimes, witness},
	"gap kernelMissed":        {witness},
	"gap lateAttach":          {runtimes, witness},
	"gap linkLost":            {witness},
	"gap powerLoss":           {agent},
	"gap ringFull":            {witness},
	"gap runtimeDisconnected": {runtimes, agent, witness},
	"gap setFull":             {witness},
	"gap spoolDropped":        {spool},
	"gap stoodDown":           {witness},
	"gap suspended":           {agent},
	"gap unarmedMapping":      {agent, witness},

	"gap of a site adopted":         {runtimes, agent, witness},
	"gap of a site agentDown":       {runtimes, witness},
	"gap of a site attributionLost": {witness},
	"gap of a site budgetDisarm":    {witness},
	"gap of a site decodeError":     {witness},
	"gap of a site fileChanged":     {runtimes, witness},
	"gap of a site kernelMissed":    {witness},
	"gap of a site lateAttach":      {runtimes, witness},
	"gap of a site linkLost":        {witness},
	"gap of a site ringFull":        {witness},
	"gap of a site setFull":         {witness},
	"gap of a site stoodDown":       {witness},
	"gap of a site unarmedMapping":  {agent, witness},

	"not armed attachFailed":           {agent},
	"not armed endedBeforeArmed":       {agent},
	"not armed fileNotFound":           {runtimes, agent, witness},
	"not armed fileUnreadable":         {runtimes, agent},
	"not armed foreignArchitecture":    {runtimes},
	"not armed kernelUnsupported":      {agent},
	"not armed sandboxedRuntime":       {agent},
	"not armed sharedCgroup":           {agent},
	"not armed symbolNotFound":         {runtimes, agent, witness},
	"not armed unprobeableInstruction": {runtimes},
	"not armed wouldBreakTarget":       {runtimes},
}

// Nobody lists what no test's evidence has, and why.
var Nobody = map[string]string{
	"probe type unknown": "no kernel serves it: it is what a set asks for",
	"entry of syscalls":  "system calls have no entries",

	"gap attachFailed":  "not built yet",
	"gap policyChanged": "not built yet",

	"not armed policyRefused":    "not built yet",
	"not armed remoteFilesystem": "bpf/probe's tests reach it, and make no evidence",
	"not armed managedCode":      "bpf/probe's tests reach it, and make no evidence",
	"not armed budget":           "bpf/probe's tests reach it, and make no evidence",
}
