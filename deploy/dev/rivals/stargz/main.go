// containerd-stargz-grpc: the eStargz snapshotter's daemon, made of that project's own `service` package.
//
// Its own main package is a module that no module proxy serves under a version. This one takes the same flags for what
// a benchmark needs and leaves out the rest: CRI and Kubernetes credentials, the FUSE manager, IPFS, the metrics port.
package main

import (
	"context"
	"errors"
	"flag"
	"io/fs"
	"net"
	"os"
	"os/signal"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/keychain/dockerconfig"
	// Its `default` tags are part of the configuration's meaning; other TOML packages do not know them.
	"github.com/pelletier/go-toml"
	"google.golang.org/grpc"
)

func main() {
	address := flag.String("address", "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock", "socket to listen on")
	root := flag.String("root", "/var/lib/containerd-stargz-grpc", "directory of layers and caches")
	config := flag.String("config", "/etc/containerd-stargz-grpc/config.toml", "configuration file")
	level := flag.String("log-level", "info", "trace, debug, info, warn or error")
	flag.Parse()
	err := log.SetLevel(*level)
	if err == nil {
		err = serve(context.Background(), *address, *root, *config)
	}
	if err != nil {
		log.L.WithError(err).Fatal("containerd-stargz-grpc")
	}
}

func serve(ctx context.Context, address, root, configPath string) error {
	config, err := readConfig(configPath)
	if err != nil {
		return err
	}
	snapshotter, err := service.NewStargzSnapshotterService(
		ctx, root, config, service.WithCredsFuncs(dockerconfig.NewDockerconfigKeychain(ctx)))
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	// As with the original, SIGINT unmounts every layer and any other signal leaves the mounts.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	go func() {
		<-interrupted
		server.Stop()
	}()
	return errors.Join(server.Serve(listener), snapshotter.Close())
}

func readConfig(path string) (*service.Config, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	config := &service.Config{}
	return config, toml.Unmarshal(text, config)
}
