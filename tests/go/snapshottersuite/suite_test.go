// Package snapshottersuite drives containerd's own snapshotter tests through a proxy connection against the daemon.
package snapshottersuite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// The suite relaxes what overlayfs cannot do (renaming a directory of a lower layer) for this name.
const suiteName = "overlayfs"

const startDeadline = 60 * time.Second

func TestSnapshotter(t *testing.T) {
	command := strings.Fields(os.Getenv("FASTPULL_SNAPSHOTTER"))
	if len(command) == 0 {
		t.Fatal("FASTPULL_SNAPSHOTTER must hold the command that starts the daemon")
	}
	testsuite.SnapshotterSuite(t, suiteName, func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		return startDaemon(command, root)
	})
}

// startDaemon gives each test a daemon and a root of its own; the returned function stops it and fails unless it exits with 0.
func startDaemon(command []string, root string) (snapshots.Snapshotter, func() error, error) {
	run, err := os.MkdirTemp("", "run-")
	if err != nil {
		return nil, nil, err
	}
	socket := filepath.Join(run, "s")
	arguments := append(command[1:len(command):len(command)],
		"--root", root, "--run-dir", run, "--address", socket, "--data-plane", "none", "--log-level", "error")
	var output bytes.Buffer
	daemon := exec.Command(command[0], arguments...)
	daemon.Stdout, daemon.Stderr = &output, &output
	if err := daemon.Start(); err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(run))
	}
	exited := make(chan error, 1)
	go func() { exited <- daemon.Wait() }()

	stop := func() error {
		defer os.RemoveAll(run)
		if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		if err := <-exited; err != nil {
			return fmt.Errorf("%w: %s", err, output.String())
		}
		if output.Len() != 0 {
			return fmt.Errorf("the daemon reported errors: %s", output.String())
		}
		return nil
	}
	if err := waitFor(socket, exited); err != nil {
		_ = daemon.Process.Kill()
		return nil, nil, fmt.Errorf("%w: %s", err, output.String())
	}
	connection, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	snapshotter := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), suiteName)
	return snapshotter, func() error { return errors.Join(connection.Close(), stop()) }, nil
}

func waitFor(socket string, exited <-chan error) error {
	for deadline := time.Now().Add(startDeadline); time.Now().Before(deadline); {
		select {
		case err := <-exited:
			return fmt.Errorf("the daemon ended while it started: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
		if connection, err := net.Dial("unix", socket); err == nil {
			return connection.Close()
		}
	}
	return fmt.Errorf("nobody listens on %s after %s", socket, startDeadline)
}
