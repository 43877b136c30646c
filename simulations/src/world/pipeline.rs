//! From pieces to a container: a client reads up to three layers as they come, and what has come is unpacked one layer
//! after the other. So *arrived* and *ready* are two moments.

use shoal_transfer::event::Input;

use super::{Event, World, agent::reader_id};
use crate::num::{at, ceil};

impl World {
    /// The policy says that a layer is complete.
    pub(super) fn completed(&self, node: u32, layer: u32) {
        assert!(self.is_complete(node, layer), "node {node} calls layer {layer} complete");
    }

    /// A piece was stored: the layer's client reads on.
    pub(super) fn move_reader(&mut self, node: u32, layer: u32, piece: u32) {
        if self.is_complete(node, layer) {
            let open = self.agent(node).is_some_and(|agent| {
                let before = agent.readers.len();
                agent.readers.retain(|(other, _)| *other != layer);
                agent.readers.len() < before
            });
            if open {
                self.feed(node, Input::ReaderClosed { reader: reader_id(layer) });
            }
            self.open_readers(node);
            return self.unpack(node);
        }
        let Some(agent) = self.agents[at(node)].as_deref() else { return };
        let Some(place) = agent.readers.iter().position(|reader| *reader == (layer, piece)) else { return };
        let pieces = self.plan.layers[at(layer)].layout.pieces();
        let next = (piece + 1..pieces).find(|next| !self.has(node, layer, *next)).unwrap_or(pieces);
        if let Some(agent) = self.agent(node) {
            agent.readers[place].1 = next;
        }
        self.feed(node, Input::ReaderMoved { reader: reader_id(layer), piece: next });
    }

    /// Unpacks what has come, in the order of the layers.
    pub(super) fn unpack(&mut self, node: u32) {
        let rate = self.plan.scenario.nodes.unpack.0;
        loop {
            let next = self.meter.logs[at(node)].unpacked;
            let Some(&layer) = self.plan.wanted.get(next) else { return };
            if !self.is_complete(node, layer) {
                return;
            }
            let takes = ceil(self.plan.layers[at(layer)].layout.size() as f64 / rate * 1e9);
            let now = self.now;
            let log = &mut self.meter.logs[at(node)];
            log.unpack_free = log.unpack_free.max(now) + takes;
            log.unpacked += 1;
            if log.unpacked == self.plan.wanted.len() {
                log.arrived = now;
                let ready = log.unpack_free;
                self.meter.arrived += 1;
                self.push(ready, Event::Ready(node));
                self.plan_leave(node);
            }
        }
    }

    pub(super) fn ready(&mut self, node: u32) {
        let log = &mut self.meter.logs[at(node)];
        if log.ready == u64::MAX {
            log.ready = self.now;
            self.meter.ready += 1;
            self.next_arrivals();
        }
    }
}
