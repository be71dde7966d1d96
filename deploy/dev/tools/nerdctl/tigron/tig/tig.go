// Package tig stands in for nerdctl's test framework.
//
// nerdctl's command links a few of its test helpers, and those name one interface of a module that lives in
// nerdctl's own tree behind a "replace" directive, so no module proxy serves it. Only the methods that *testing.T
// offers and those helpers call are declared here; nothing of it runs in the command.
package tig

// T is the part of *testing.T that nerdctl's compose helper calls.
type T interface {
	Helper()
	FailNow()
	Fail()
	Log(args ...any)
	Name() string
}
